from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from pipeline.coco.segmentations import as_rle, mask_area

HEIGHT, WIDTH = 30, 40
RLE = coco_mask.encode(np.asfortranarray(np.eye(HEIGHT, WIDTH, dtype=np.uint8)))
COMPRESSED = {"size": [HEIGHT, WIDTH], "counts": RLE["counts"].decode()}


@pytest.mark.parametrize(
    "segmentation",
    [
        pytest.param([[1.5, 1, 20, 3, 9, 25.25]], id="polygon"),
        pytest.param([[1, 1, 8, 1, 8, 8], [5, 5, 20, 5, 20, 29, 5, 29]], id="polygons that overlap"),
        pytest.param([[-5, -5, 100, -5, 100, 100]], id="polygon that leaves the image"),
        pytest.param({"size": [HEIGHT, WIDTH], "counts": [100, 50, HEIGHT * WIDTH - 150]}, id="uncompressed"),
        pytest.param({"size": [HEIGHT, WIDTH], "counts": [0, HEIGHT * WIDTH]}, id="everything"),
        pytest.param(COMPRESSED, id="compressed"),
    ],
)
def test_equal_to_pycocotools(segmentation: Any) -> None:
    coco = COCO()
    coco.imgs = {1: {"height": HEIGHT, "width": WIDTH}}
    wanted = coco.annToRLE({"image_id": 1, "segmentation": segmentation})
    found = as_rle(segmentation, HEIGHT, WIDTH)
    assert found["size"] == list(wanted["size"])
    assert found["counts"] == (wanted["counts"].encode() if segmentation is COMPRESSED else wanted["counts"])
    assert mask_area(found) == coco_mask.area(wanted)


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        (3, "neither a list of polygons nor an RLE"),
        ("text", "neither"),
        ([], "no polygons"),
        ({"counts": "x"}, "neither"),
        ({"size": 3, "counts": "x"}, "is 3, the image's 30 x 40"),
        ([[3, 4, 10, 6]], "at least three points"),
        ([3, 4, 5, 6], "list of coordinates"),
        ([["a", 2, 3, 4, 5, 6]], "coordinates|could not convert"),
        ([[1, 2, float("nan"), 4, 5, 6]], "list of coordinates"),
        ([[1, 2, 1e12, 4, 5, 6]], "none beyond 1,000,000 pixels"),
        ({"size": [WIDTH, HEIGHT], "counts": "x"}, r"\(height x width\) is 40 x 30, the image's 30 x 40"),
        ({"size": [HEIGHT, WIDTH], "counts": [5, 5]}, "add up to the image's pixels"),
        ({"size": [HEIGHT, WIDTH], "counts": [-5, 5 + HEIGHT * WIDTH]}, "add up to the image's pixels"),
        ({"size": [HEIGHT, WIDTH], "counts": None}, "add up to the image's pixels"),
    ],
)
def test_faults(segmentation: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        as_rle(segmentation, HEIGHT, WIDTH)
