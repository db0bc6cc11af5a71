"""Rows of an output as blocks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pycocotools import mask as coco_mask

from pipeline.annotations.schema import ImageDetections, detections_array
from pipeline.coco.errors import InputError
from pipeline.metrics.blocks import Categories
from pipeline.metrics.rows import OutputBatch

CATEGORIES = Categories((1, 5), ("cat", "dog"))
NAMES = {1: "cat", 3: "ghost", 5: "dog"}


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
