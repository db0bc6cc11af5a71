"""Label Studio's masks, decoded by a reader written from the definition of thi.ng/rle-pack."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from numpy.typing import NDArray

from pipeline.export.outlines.brush_rle import encode_brush
from pipeline.export.outlines.crops import Crop, crop_of
from tests.export.export_cases import MASKS, Mask, any_mask, counts_of, unhurried


def decode_brush(rle: Sequence[int], image_size: tuple[int, int]) -> NDArray[np.uint8]:
    """[H, W, 4] values."""
    bits = "".join(f"{byte:08b}" for byte in rle)
    position = 0

    def read(num_bits: int) -> int:
        nonlocal position
        position += num_bits
        assert position <= len(bits), "the stream is too short"
        return int(bits[position - num_bits : position], 2)

    num_values, value_bits = read(32), read(5) + 1
    length_bits = [read(4) + 1 for _ in range(4)]
    values: list[int] = []
    while len(values) < num_values:
        repeated = read(1)
        length = read(length_bits[read(2)]) + 1
        values += [read(value_bits)] * length if repeated else [read(value_bits) for _ in range(length)]
    assert len(values) == num_values
    assert set(bits[position:]) <= {"0"}
    assert len(bits) - position < 8
    return np.array(values, np.uint8).reshape(*image_size, 4)


def encoded(mask: Mask) -> list[int]:
    crop = crop_of(counts_of(mask), mask.shape)
    assert crop is not None
    return encode_brush(crop, mask.shape)


def check(mask: Mask) -> None:
    values = decode_brush(encoded(mask), mask.shape)
    np.testing.assert_array_equal(values, np.repeat(mask[..., None], 4, axis=2) * np.uint8(255))


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_kinds(mask: Mask) -> None:
    check(mask)


@unhurried
@given(any_mask.filter(lambda mask: bool(mask.any())))
def test_any(mask: Mask) -> None:
    check(mask)


@pytest.mark.parametrize("num_pixels", [1, 2, 3, 4, 5, 63, 64, 65, 16384, 16385, 32768, 40000])
def test_runs_at_the_borders_of_the_size_classes(num_pixels: int) -> None:
    """4 values a pixel: 8, 16, 256 and 65536 values are the longest of each class."""
    mask = np.zeros((1, 2 * num_pixels + 1), bool)
    mask[0, num_pixels : 2 * num_pixels] = True
    check(mask)


def test_bytes_by_hand() -> None:
    # 4 values | 7 | 2, 3, 7, 15 | one run: 1, class 0, length 4 - 1, value 255 | filled up
    bits = f"{4:032b}" + "00111" + "0010001101111111" + "10001111111111" + "00000"
    wanted = [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]
    assert encoded(np.ones((1, 1), bool)) == wanted


def test_too_large_an_image() -> None:
    crop = Crop(0, 0, np.ones((1, 1), bool))
    with pytest.raises(ValueError, match="too large"):
        encode_brush(crop, (1 << 15, 1 << 15))
