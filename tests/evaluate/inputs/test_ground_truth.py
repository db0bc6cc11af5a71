from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.coco.errors import InputError
from pipeline.coco.rows import image_schema, object_schema
from pipeline.evaluate.inputs import ground_truth
from pipeline.evaluate.inputs.ground_truth import MAX_PARTS, count_parts, deal_truth
from pipeline.evaluate.shuffle import chunks
from pipeline.evaluate.shuffle.chunks import ChunkStore, chunks_of
from pipeline.metrics.blocks import Categories
from pipeline.storage.uris import Uri
from tests.evaluate.coco_cases import random_case
from tests.evaluate.input_cases import write_json


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many parts, tables and files even of small sets."""
    monkeypatch.setattr(ground_truth, "PART_BYTES", 2000)
    monkeypatch.setattr(ground_truth, "_ROWS_AT_ONCE", 3)
    monkeypatch.setattr(chunks, "BUFFER_BYTES", 2000)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("keys", [("images", "annotations", "categories"), ("categories", "annotations", "images")])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_every_row_is_dealt_once_whatever_comes_first(keys: tuple[str, ...], suffix: str, tmp_path: Path) -> None:
    dataset = random_case(3, num_images=30).dataset
    text = json.dumps({"info": {"year": 2017}, **{key: dataset[key] for key in keys}, "licenses": [1]}).encode()
    (tmp_path / f"gt.json{suffix}").write_bytes(gzip.compress(text) if suffix else text)
    store = ChunkStore(Uri(str(tmp_path / "scratch")))
    truth = deal_truth(Uri(str(tmp_path / f"gt.json{suffix}")), store, masks=True)
    assert truth.num_parts > 5
    assert len(truth.objects) > 5
    parts = range(truth.num_parts)
    images = [store.read(chunks_of(truth.images, part), image_schema(pa.int64())) for part in parts]
    objects = [store.read(chunks_of(truth.objects, part), object_schema(pa.int64())) for part in parts]
    assert sum(map(len, images)) == truth.num_images == len(dataset["images"])
    for table, others in zip(images, objects, strict=True):
        assert set(others["image_id"].to_pylist()) <= set(table["image_id"].to_pylist())
        assert others["id"].to_pylist() == sorted(others["id"].to_pylist())  # as the file has them
    rows = {row["id"]: row for table in objects for row in table.to_pylist()}
    assert sorted(rows) == [item["id"] for item in dataset["annotations"]]
    for item in dataset["annotations"]:
        row = rows[item["id"]]
        if isinstance(item["segmentation"], list):
            assert (row["polygons"], row["mask"]) == (item["segmentation"], None)
        else:
            assert (row["polygons"], json.loads(row["mask"])) == (None, item["segmentation"])
        assert (row["box"], row["area"], row["crowd"]) == (item["bbox"], item["area"], bool(item["iscrowd"]))
    ids = sorted((category["id"], category["name"]) for category in dataset["categories"])
    assert truth.categories == Categories(*(tuple(column) for column in zip(*ids, strict=True)))


def test_without_masks_no_segmentation_is_kept(tmp_path: Path) -> None:
    dataset = random_case(3).dataset
    for image in dataset["images"]:
        del image["height"], image["width"]
    uri = write_json(tmp_path / "gt.json", dataset)
    store = ChunkStore(Uri(str(tmp_path / "scratch")))
    truth = deal_truth(Uri(uri), store, masks=False)
    table = store.read(chunks_of(truth.objects, 0), object_schema(pa.int64()))
    assert table["mask"].null_count == table["polygons"].null_count == len(table) == truth.num_objects
    with pytest.raises(InputError, match=r"images\[0\] \(id \d+\): height and width"):
        deal_truth(Uri(uri), store, masks=True)


GOOD: dict[str, Any] = {
    "images": [{"id": 1, "height": 4, "width": 5}],
    "annotations": [
        {
            "id": 7,
            "image_id": 1,
            "category_id": 2,
            "bbox": [0, 0, 1, 1],
            "area": 1,
            "segmentation": [[0, 0, 1, 0, 1, 1]],
        }
    ],
    "categories": [{"id": 2, "name": "cat"}],
}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "is a list, as results are"),
        ([{"image_id": 1}, 3], "is a list, as results are"),
        ({**GOOD, "categories": []}, "ground truth without categories"),
        ({"images": [], "categories": GOOD["categories"]}, "no list 'annotations'"),
        ({"annotations": [], "categories": GOOD["categories"]}, "no list 'images'"),
        ({**GOOD, "images": {"1": {}}}, "no list 'images'"),
        ({**GOOD, "images": [{"id": 1, "height": 4}]}, r"gt.json, images\[0\] \(id 1\): height and width"),
        ({**GOOD, "annotations": [{"id": 7}]}, r"gt.json, annotations\[0\] \(id 7\): it has no key 'image_id'"),
        ({**GOOD, "annotations": [{**GOOD["annotations"][0], "category_id": 9}]}, r"lacks: 9 \(of annotation 7\)"),
        ({**GOOD, "categories": [*GOOD["categories"] * 2]}, r"categories\[1\] \(id 2\): the id stands for 'cat', too"),
        ({**GOOD, "annotations": [{**GOOD["annotations"][0], "image_id": "1"}]}, "all integers or all strings"),
    ],
)
def test_what_cannot_be_evaluated(content: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        deal_truth(Uri(write_json(tmp_path / "gt.json", content)), ChunkStore(Uri(str(tmp_path / "scratch"))), True)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        count_parts(Uri(str(tmp_path / "none.json")))


def test_parts_by_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"x" * 1000)
    assert count_parts(Uri(str(path))) == 1
    monkeypatch.setattr(ground_truth, "PART_BYTES", 300)
    assert count_parts(Uri(str(path))) == 4
    assert count_parts(Uri(str(path.rename(tmp_path / "a.json.gz")))) == 17
    monkeypatch.setattr(ground_truth, "PART_BYTES", 1)
    assert count_parts(Uri(str(tmp_path / "a.json.gz"))) == MAX_PARTS


def test_positions_of_categories() -> None:
    categories = Categories((2, 5, 90), ("a", "b", "c"))
    assert categories.positions(np.array([90, 2, 3, 91, -1, 5])).tolist() == [2, 0, -1, -1, -1, 1]
