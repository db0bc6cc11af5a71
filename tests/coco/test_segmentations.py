from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from pipeline.coco.segmentations import BadSegmentation, as_rles

HEIGHT, WIDTH = 30, 40


def encoded(mask: Any) -> str:
    return coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"].decode()


GOOD = encoded(np.eye(HEIGHT, WIDTH))
COMPRESSED = {"size": [HEIGHT, WIDTH], "counts": GOOD}


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
    column = as_rles([segmentation], [(HEIGHT, WIDTH)])
    (found,) = column
    assert found["size"] == list(wanted["size"])
    assert found["counts"] == (wanted["counts"].encode() if segmentation is COMPRESSED else wanted["counts"])
    assert column.areas.tolist() == [coco_mask.area(wanted)]


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
        ({"size": [HEIGHT, WIDTH], "counts": [5, 5]}, "run lengths of 10 pixels in all for a mask of 30 x 40"),
        ({"size": [HEIGHT, WIDTH], "counts": [-5, 5 + HEIGHT * WIDTH]}, "a run of -5 pixels"),
        ({"size": [HEIGHT, WIDTH], "counts": [2**63 - 1, 2**63 - 1, 2 + HEIGHT * WIDTH]}, "a run of 9,223"),
        ({"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH / 2] * 2}, "no list of whole numbers"),
        ({"size": [HEIGHT, WIDTH], "counts": []}, "no list of whole numbers"),
        ({"size": [HEIGHT, WIDTH], "counts": None}, "no list of whole numbers"),
        ({"size": [HEIGHT, WIDTH], "counts": GOOD[:-1]}, "cut off|pixels"),
        ({"size": [HEIGHT, WIDTH], "counts": f"b'{GOOD}'"}, "not a compressed string"),
        ({"size": [HEIGHT, WIDTH], "counts": GOOD * 2}, "a run of|in all"),
        ({"size": [HEIGHT, WIDTH], "counts": encoded(np.ones((300, 400)))}, "a run of 120,000 pixels"),
        ({"size": [HEIGHT, WIDTH], "counts": encoded(np.ones((3, 4)))}, "run lengths of 12 pixels in all"),
        ({"size": [HEIGHT, WIDTH], "counts": "hello world"}, "not a compressed string"),
        ({"size": [HEIGHT, WIDTH], "counts": ""}, "not a compressed string"),
        ({"size": [HEIGHT, WIDTH], "counts": "\u4e2d"}, "not a compressed string"),
        ({"size": [HEIGHT, WIDTH], "counts": "\ud800"}, "not a compressed string"),
    ],
)
def test_faults(segmentation: Any, message: str) -> None:
    """The last of several, and the message has its place."""
    several = [COMPRESSED, [[1, 1, 8, 1, 8, 8]], COMPRESSED, segmentation]
    with pytest.raises(BadSegmentation, match=message) as caught:
        as_rles(several, [(HEIGHT, WIDTH)] * 4)
    assert caught.value.index == 3


@pytest.mark.parametrize("size", [(0, 40), (-30, -40), (30.0, 40), (True, 1), ("30", 40), (1 << 16, 1 << 15)])
def test_sizes_that_no_image_has(size: Any) -> None:
    for segmentation in ([[1, 1, 8, 1, 8, 8]], {"size": list(size), "counts": [0, 1]}):
        with pytest.raises(BadSegmentation, match="cannot have a mask"):
            as_rles([segmentation], [size])
