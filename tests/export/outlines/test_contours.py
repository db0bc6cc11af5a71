"""Outlines: exact under two fill rules, and with the areas and corners that one can count."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from pycocotools import mask as coco_mask

from pipeline.export.outlines.contours import outline, outlines, rings
from tests.export.export_cases import MASKS, Mask, any_mask, unhurried


def signed_area(ring: np.ndarray) -> float:
    """Positive for clockwise rings, as y points down."""
    x, y = ring.T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


def check(mask: Mask) -> None:
    path = outline(mask)
    height, width = mask.shape
    assert signed_area(path) == mask.sum(), "holes and parts have opposite directions"
    (rle,) = coco_mask.frPyObjects([path.astype(float).reshape(-1).tolist()], height, width)
    np.testing.assert_array_equal(coco_mask.decode(rle).astype(bool), mask)
    rows, columns = np.nonzero(mask)
    assert path.min(axis=0).tolist() == [columns.min(), rows.min()]
    assert path.max(axis=0).tolist() == [columns.max() + 1, rows.max() + 1]


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_kinds(mask: Mask) -> None:
    check(mask)


@unhurried
@given(any_mask.filter(lambda mask: bool(mask.any())))
def test_any(mask: Mask) -> None:
    check(mask)


@unhurried
@given(any_mask)
def test_rings_are_the_parts_and_the_holes(mask: Mask) -> None:
    areas = [signed_area(ring) for ring in rings(mask)]
    num_parts = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)[0] - 1
    outside_and_holes = cv2.connectedComponents(np.pad(~mask, 1, constant_values=True).astype(np.uint8), connectivity=8)
    assert sum(area > 0 for area in areas) == num_parts
    assert sum(area < 0 for area in areas) == outside_and_holes[0] - 2
    assert sum(areas) == mask.sum()


@unhurried
@given(any_mask)
def test_one_polygon_a_part(mask: Mask) -> None:
    """Each is its part with its holes left out, whatever lies in these; parts by OpenCV, filled by pycocotools."""
    num_parts, numbers = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)
    found = outlines(mask)
    assert len(found) == num_parts - 1
    left = set(range(1, num_parts))
    for polygon in found:
        (rle,) = coco_mask.frPyObjects([polygon.astype(float).reshape(-1).tolist()], *mask.shape)
        filled = coco_mask.decode(rle).astype(bool)
        (number,) = set(numbers[filled].tolist())
        np.testing.assert_array_equal(filled, numbers == number)
        left.remove(number)


def test_corners_by_hand() -> None:
    (ring,) = rings(np.array([[1, 1], [1, 0]], bool))
    assert ring.tolist() == [[0, 0], [2, 0], [2, 1], [1, 1], [1, 2], [0, 2]]


def test_a_bridge_by_hand() -> None:
    path = outline(np.array([[1, 0, 1]], bool))
    # Around the first pixel, on its corner (1, 0) over to (2, 0), around the second, and back.
    assert path.tolist() == [[0, 0], [1, 0], [2, 0], [3, 0], [3, 1], [2, 1], [2, 0], [1, 0], [1, 1], [0, 1]]
