from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pycocotools import mask as coco_mask

from pipeline.annotations import data_file
from pipeline.annotations.ledger import OutputStore
from pipeline.annotations.schema import ImageDetections, detections_array
from pipeline.coco.errors import InputError
from pipeline.evaluate.inputs import annotations
from pipeline.evaluate.inputs.annotations import OutputBatch, open_annotated_output
from pipeline.evaluate.inputs.ground_truth import Categories
from pipeline.storage.uris import Uri
from tests.evaluate.coco_cases import random_case
from tests.evaluate.input_cases import IDENTITY, output_rows, write_output

CATEGORIES = Categories((1, 5), ("cat", "dog"))
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


def batch(*images: dict[str, Any]) -> OutputBatch:
    """One image each, 20 x 30 pixels; labels 0, 1, 2 are categories 1, 3, 5."""
    found = []
    for image in images:
        labels = np.array(image["labels"], np.int64)
        n = len(labels)
        mask = coco_mask.encode(np.ones(image.get("size", (20, 30)), np.uint8, order="F"))
        found.append(
            ImageDetections(
                boxes=np.array(image.get("boxes", [[0.1, 2, 3, 4]] * n), np.float32).reshape(-1, 4),
                scores=np.array(image.get("scores", [0.3] * n), np.float32),
                labels=labels,
                areas=np.full(n, image.get("area", 7.0), np.float32),
                image_size=image.get("size", (20, 30)),
                counts=[mask["counts"]] * n,
            )
        )
    ids = pa.array([10 * n for n in range(len(images))])
    return OutputBatch("a.parquet", ids, detections_array(found, list(NAMES), list(NAMES.values())))


class TestBlock:
    def test_detections_keep_order_numbers_and_places(self) -> None:
        found = batch({"labels": [0]}, {"labels": [1, 2, 0, 1, 0], "scores": [0.9, 0.8, 0.7, 0.6, 0.1]}, {"labels": []})
        block = found.block(np.array([1, 2, 0]), np.array([[20, 30]] * 3), CATEGORIES, masks=True)
        assert block.offsets.tolist() == [0, 3, 3, 4]
        assert block.categories.tolist() == [1, 0, 0, 0]
        assert block.positions.tolist() == [1, 2, 4, 0]
        assert block.scores.tolist() == [float(np.float32(score)) for score in (0.8, 0.7, 0.1, 0.3)]
        assert block.boxes[0].tolist() == [float(np.float32(0.1)), 2, 3, 4]
        assert block.rles is not None
        assert block.rles.areas.tolist() == [600] * 4  # whatever the file says
        assert {(tuple(rle["size"]), coco_mask.area(rle).item()) for rle in block.rles} == {((20, 30), 600)}

    def test_without_masks(self) -> None:
        block = batch({"labels": [0, 2]}).block(np.array([0]), np.array([[20, 30]]), CATEGORIES, masks=False)
        assert block.rles is None
        assert len(block) == 1

    def test_areas_that_float32_rounds(self) -> None:
        size = (4097, 4099)  # 16,793,603 pixels: odd, beyond 2**24
        block = batch({"labels": [0], "size": size, "area": 4097 * 4099}).block(
            np.array([0]), np.array([size]), CATEGORIES, masks=True
        )
        assert block.rles is not None
        assert block.rles.areas.tolist() == [4097 * 4099]

    @pytest.mark.parametrize(
        ("image", "message"),
        [
            ({"labels": [0], "scores": [np.nan]}, "no finite number: image 0; annotate them anew"),
            ({"labels": [0], "boxes": [[0, 0, np.inf, 1]]}, "no finite number: image 0"),
            ({"labels": [0, 0], "size": (30, 20)}, r"1 images have another size .*: image 0 \(30 x 20, not 20 x 30\)$"),
        ],
    )
    def test_faults(self, image: dict[str, Any], message: str) -> None:
        with pytest.raises(InputError, match=message):
            batch(image).block(np.array([0]), np.array([[20, 30]]), CATEGORIES, masks=True)

    @pytest.mark.parametrize(
        ("counts", "message"),
        [("53", "run lengths of 8 pixels in all for a mask of 20 x 30"), ("00N8", "a run of -2"), ("", "compressed")],
    )
    def test_damaged_masks(self, counts: str, message: str) -> None:
        found = batch({"labels": [0, 0]}, {"labels": [1]}, {"labels": [0, 0]})
        rows = found.detections.to_pylist()
        rows[2][1]["segmentation"]["counts"] = counts
        damaged = OutputBatch("a.parquet", found.image_ids, pa.array(rows, found.detections.type))
        with pytest.raises(InputError, match=f"a.parquet: the mask of a detection on image 20 is damaged: .*{message}"):
            damaged.block(np.array([1, 2]), np.array([[20, 30]] * 2), CATEGORIES, masks=True)

    def test_nulls(self) -> None:
        found = batch({"labels": [0]})
        rows = found.detections.to_pylist()
        rows[0][0]["score"] = None
        damaged = OutputBatch("a.parquet", found.image_ids, pa.array(rows, found.detections.type))
        with pytest.raises(InputError, match=r"a.parquet: 1 detections have no score"):
            damaged.block(np.array([0]), np.array([[20, 30]]), CATEGORIES, masks=False)
