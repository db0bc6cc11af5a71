from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from pipeline.coco.results import coco_annotations, coco_categories, coco_rle, write_json
from pipeline.model.categories import Category
from pipeline.model.detections import Detections

CATEGORIES = (Category(7, "cat"), Category(3, "Äpfel"))


def detections(boxes: list[list[float]], labels: list[int]) -> Detections:
    count = len(boxes)
    return Detections(
        boxes=np.array(boxes, np.float32).reshape(count, 4),
        scores=np.linspace(0.9, 0.1, count, dtype=np.float32),
        labels=np.array(labels, np.int64),
        masks=np.ones((count, 28, 28), np.float32),
        image_size=(20, 30),
    )


def test_by_hand() -> None:
    found = detections([[2, 3, 12, 8], [0, 0, 30, 20]], [1, 0])
    first, second = coco_annotations(found, image_id=5, categories=CATEGORIES, first_id=11)
    assert first["id"] == 11
    assert second["id"] == 12
    assert first["image_id"] == second["image_id"] == 5
    assert (first["category_id"], second["category_id"]) == (3, 7)
    assert first["bbox"] == [2, 3, 10, 5]
    assert (first["area"], second["area"]) == (50, 600)
    assert first["iscrowd"] == 0
    pixels = coco_mask.decode(first["segmentation"])
    expected = np.zeros((20, 30), np.uint8)
    expected[3:8, 2:12] = 1
    np.testing.assert_array_equal(pixels, expected)


def test_no_detections() -> None:
    assert coco_annotations(detections([], []), 1, CATEGORIES) == []


def test_json_round_trip_loses_nothing() -> None:
    found = detections([[0.1, 1 / 3, 17.77, 19.9]], [0])
    annotation = coco_annotations(found, 1, CATEGORIES)[0]
    back = json.loads(json.dumps(annotation, allow_nan=False))
    assert back == annotation
    x, y, w, h = back["bbox"]
    np.testing.assert_array_equal(np.float32([x, y, x + w, y + h]), found.boxes[0])
    assert np.float32(back["score"]) == found.scores[0]
    assert back["segmentation"]["counts"].encode() == found.rle()[0]["counts"]


def test_masks_computed_before_are_used() -> None:
    found = detections([[2, 3, 12, 8]], [0])
    other = coco_mask.encode(np.asfortranarray(np.eye(20, 30, dtype=np.uint8)))
    annotation = coco_annotations(found, 1, CATEGORIES, rles=[other])[0]
    assert annotation["area"] == 20
    assert annotation["segmentation"] == coco_rle(other)


def test_label_without_category() -> None:
    with pytest.raises(IndexError):
        coco_annotations(detections([[2, 3, 12, 8]], [2]), 1, CATEGORIES)


def test_categories() -> None:
    assert coco_categories(CATEGORIES) == [{"id": 7, "name": "cat"}, {"id": 3, "name": "Äpfel"}]


class TestWriteJson:
    def test_round_trip(self, tmp_path: Path) -> None:
        path = tmp_path / "x.json"
        for content in ({"name": "Äpfel"}, {"numbers": [1, 0.1, None]}):
            write_json(content, path)
            assert json.loads(path.read_bytes()) == content
        assert list(tmp_path.iterdir()) == [path]

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), np.float32(1), np.int64(1), b"x", np.zeros(2)])
    def test_what_json_does_not_have(self, tmp_path: Path, value: object) -> None:
        path = tmp_path / "x.json"
        write_json({"old": 1}, path)
        with pytest.raises((TypeError, ValueError)):
            write_json({"value": value}, path)
        assert json.loads(path.read_bytes()) == {"old": 1}
        assert list(tmp_path.iterdir()) == [path]
