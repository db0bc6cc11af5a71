from __future__ import annotations

import pickle
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.annotations import data_file
from pipeline.annotations.ledger import OutputStore
from pipeline.coco.errors import InputError
from pipeline.evaluate.inputs import annotations
from pipeline.evaluate.inputs.annotations import open_annotated_output
from pipeline.storage.uris import Uri
from tests.evaluate.coco_cases import random_case
from tests.evaluate.input_cases import IDENTITY, output_rows, write_output

NAMES = {1: "cat", 3: "ghost", 5: "dog"}


class TestOpening:
    def test_groups_are_consecutive_files(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        dataset, results = random_case(1, num_images=20)
        names = {category["id"]: category["name"] for category in dataset["categories"]} | {999: "ghost"}
        write_output(str(tmp_path), dataset, results, names, rows_per_file=3)
        whole = open_annotated_output(Uri(str(tmp_path)))
        assert [len(files) for files in whole.groups] == [7]
        monkeypatch.setattr(annotations, "GROUP_IMAGES", 6)
        cut = open_annotated_output(Uri(str(tmp_path)))
        assert [entry for files in cut.groups for entry in files] == list(whole.groups[0])
        assert {len(files) for files in cut.groups} <= {1, 2}
        monkeypatch.setattr(annotations, "MAX_GROUPS", 2)
        assert 2 <= open_annotated_output(Uri(str(tmp_path))).num_groups <= 3
        assert pickle.loads(pickle.dumps(cut)) == cut  # noqa: S301

    @pytest.mark.parametrize("folder", ["", "data"])
    def test_nothing_there(self, folder: str, tmp_path: Path) -> None:
        (tmp_path / folder).mkdir(exist_ok=True)
        with pytest.raises(InputError, match=r"holds no predictions.*give the output of annotate, or a COCO results"):
            open_annotated_output(Uri(str(tmp_path)))

    @pytest.mark.parametrize("name", ["a.parquet", f"part-{'0' * 20}.parquet"])
    def test_parquet_of_others(self, name: str, tmp_path: Path) -> None:
        (tmp_path / "data").mkdir()
        pq.write_table(pa.table({"image_id": [1]}), tmp_path / "data" / name)
        with pytest.raises(InputError, match="did not write"):
            open_annotated_output(Uri(str(tmp_path)))

    def test_a_schema_of_another_version(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        OutputStore(Uri(str(tmp_path))).write_rows(
            output_rows([{"id": 1, "height": 2, "width": 3}], [], NAMES), IDENTITY
        )
        monkeypatch.setattr(data_file, "READABLE_VERSIONS", ("3", "4"))
        monkeypatch.setattr(annotations, "READABLE_VERSIONS", ("3", "4"))
        with pytest.raises(InputError, match="written with schema 2, this code reads 3 and 4"):
            open_annotated_output(Uri(str(tmp_path)))

    def test_an_image_is_in_one_batch(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        images = [{"id": f"a{n}", "height": 2, "width": 3} for n in range(10)]
        OutputStore(Uri(str(tmp_path))).write_rows(output_rows(images, [], NAMES), IDENTITY)
        monkeypatch.setattr(annotations, "BLOCK_IMAGES", 4)
        batches = list(open_annotated_output(Uri(str(tmp_path))).read_group(0, masks=True))
        assert [batch.image_ids.to_pylist() for batch in batches] == [
            [f"a{n}" for n in range(start, min(start + 4, 10))] for start in (0, 4, 8)
        ]
