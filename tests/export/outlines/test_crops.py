"""Decoded crops against pycocotools."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given

from pipeline.export.outlines.crops import crop_of, row_major_toggles
from tests.export.export_cases import EMPTY, MASKS, Mask, any_mask, counts_of, unhurried


def check(mask: Mask) -> None:
    crop = crop_of(counts_of(mask), mask.shape)
    if crop is None:
        assert not mask.any()
        return
    height, width = crop.pixels.shape
    whole = np.zeros(mask.shape, bool)
    whole[crop.top : crop.top + height, crop.left : crop.left + width] = crop.pixels
    np.testing.assert_array_equal(whole, mask)
    sides = (crop.pixels[0], crop.pixels[-1], crop.pixels[:, 0], crop.pixels[:, -1])
    assert all(side.any() for side in sides), "not the smallest box"


@pytest.mark.parametrize("mask", [*MASKS.values(), EMPTY], ids=[*MASKS, "empty"])
def test_kinds(mask: Mask) -> None:
    check(mask)


@unhurried
@given(any_mask)
def test_any(mask: Mask) -> None:
    check(mask)


def test_long_runs() -> None:
    """Numbers of several characters, and differences that are negative."""
    mask = np.zeros((1500, 1200), bool)
    mask[3:1400, 5:9] = True
    mask[100:200, 700:1190] = True
    check(mask)


@pytest.mark.parametrize("counts", ["", "5 3", "5\x7f", "5P", "00N", "é"])
def test_damaged_strings(counts: str) -> None:
    with pytest.raises(ValueError, match="run"):
        crop_of(counts, (2, 4))


def test_another_image_size() -> None:
    with pytest.raises(ValueError, match="run lengths of 20 pixels in all for a mask of 5 x 5"):
        crop_of(counts_of(MASKS["full"]), (5, 5))


@unhurried
@given(any_mask)
def test_toggles(mask: Mask) -> None:
    stream = np.zeros(mask.size + 1, int)
    stream[row_major_toggles(mask)] = 1
    np.testing.assert_array_equal(np.cumsum(stream)[:-1] % 2, mask.reshape(-1))
    assert stream.sum() % 2 == 0
