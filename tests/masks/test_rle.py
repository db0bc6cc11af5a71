from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from pipeline.masks.rle import encode_toggles, toggle_stride


def encode_pixels(masks: np.ndarray) -> list:
    """[N, H, W] bool through its toggles."""
    num_masks, height, width = masks.shape
    stream = np.zeros((num_masks, height * width + 2), np.int8)
    stream[:, 1:-1] = masks.transpose(0, 2, 1).reshape(num_masks, -1)
    mask, position = np.nonzero(np.diff(stream, axis=1))
    return encode_toggles(mask * toggle_stride(height, width) + position, num_masks, height, width)


@pytest.mark.parametrize("density", [0, 0.001, 0.1, 0.5, 0.9, 1])
@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (13, 17), (300, 400)])
def test_equals_pycocotools(density, shape):
    masks = np.random.default_rng(0).random((7, *shape)) < density
    expected = [coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8)) for mask in masks]
    assert encode_pixels(masks) == expected


def test_run_lengths_of_many_digits():
    # Lengths and differences of 1 to 6 five-bit groups, both signs; pycocotools decodes what was put in.
    lengths = [0, 1, 15, 16, 511, 512, 16383, 16384, 524287, 524288, 3, 16777216, 5, 2, 900_000_000, 1]
    rle = encode_toggles(np.cumsum(lengths)[:-1], 1, sum(lengths), 1)[0]
    again = coco_mask.frPyObjects({"size": rle["size"], "counts": lengths}, *rle["size"])
    assert rle == again
    assert coco_mask.area(rle) == sum(lengths[1::2])


def test_toggles_come_in_any_order_and_cancel_in_pairs():
    toggles = np.array([9, 2, 5, 5, 7, 3, 3, 3, 2 + 13, 12, 12 + 13])  # two masks of 12 pixels
    first, second = encode_toggles(toggles, 2, 3, 4)
    column_major = coco_mask.decode([first, second]).transpose(2, 1, 0).reshape(2, -1).tolist()
    assert column_major == [[0, 0, 1, 0, 0, 0, 0, 1, 1, 0, 0, 0], [0] * 2 + [1] * 10]


def test_no_masks():
    assert encode_toggles(np.empty(0, np.int64), 0, 3, 4) == []
