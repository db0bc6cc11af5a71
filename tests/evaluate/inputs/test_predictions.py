from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.evaluate.inputs import annotations
from pipeline.evaluate.inputs.annotations import open_annotated_output
from pipeline.evaluate.inputs.predictions import group_ranges, list_images, listed_schema
from pipeline.evaluate.shuffle.chunks import ChunkStore
from pipeline.storage.uris import Uri
from tests.evaluate.coco_cases import random_case
from tests.evaluate.input_cases import write_output


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Ten images in five groups."""
    monkeypatch.setattr(annotations, "GROUP_IMAGES", 2)
    dataset, results = random_case(1, num_images=10)
    names = {category["id"]: category["name"] for category in dataset["categories"]} | {999: "ghost"}
    write_output(str(tmp_path / "out"), dataset, results, names, rows_per_file=2)
    return str(tmp_path / "out")


@pytest.mark.parametrize(("most", "wanted"), [(1, [5]), (2, [2, 3]), (5, [1] * 5), (256, [1] * 5)])
def test_batches_hold_every_group_once(most: int, wanted: list[int], folder: str) -> None:
    batches = group_ranges(open_annotated_output(Uri(folder)), most)
    assert [len(batch) for batch in batches] == wanted
    assert [group for batch in batches for group in batch] == list(range(5))


def test_images_are_listed_with_their_groups(folder: str, tmp_path: Path) -> None:
    predictions, store = open_annotated_output(Uri(folder)), ChunkStore(Uri(str(tmp_path / "scratch")))
    listed = [list_images(predictions, groups, store, 3) for groups in group_ranges(predictions, 2)]
    tables = [store.read([each.file.part(p)], listed_schema(predictions.id_type)) for each in listed for p in range(3)]
    groups = sorted(group for table in tables for group in table["group"].to_pylist())
    assert groups == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert sum(each.num_images for each in listed) == 10
    results = random_case(1, num_images=10).results
    assert sum(sum(each.detections.values()) for each in listed) == len(results)
    ghosts = sum(each.detections.get((999, "ghost"), 0) for each in listed)
    assert ghosts == sum(row["category_id"] == 999 for row in results) > 0
