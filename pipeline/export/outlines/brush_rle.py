"""Label Studio's run-length encoding of brush masks.

A mask is the alpha channel of an RGBA picture, pixel by pixel, row by row, of which all four channels are written
(0 or 255). The bytes are those of thi.ng/rle-pack, a stream of bits with the highest first:

====  =======================================================================================
bits  meaning
====  =======================================================================================
32    number of values: 4 * H * W
5     bits of a value, minus 1
4x4   bits of a run's length, minus 1, in each of four size classes: here 3, 4, 8 and 16
then  runs: 1 (equal values follow), 2 bits size class, the length minus 1, the value once
====  =======================================================================================

The last byte is filled up with zeros. Decoders stop at the number of values.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.export.outlines.crops import Crop, row_major_toggles

CHANNELS = 4
LENGTH_BITS = np.array([3, 4, 8, 16])
VALUE_BITS = 8

_LONGEST = 1 << int(LENGTH_BITS[-1])
_HEADER_BITS = 32 + 5 + 4 * 4
_MOST_VALUES = (1 << 32) - 1


def encode_brush(crop: Crop, image_size: tuple[int, int]) -> list[int]:
    """The bytes of a mask, as Label Studio's JSON holds them.

    Args:
        crop: the part of the mask that has pixels.
        image_size: (H, W) of the whole image.

    Raises:
        ValueError: the image is too large for the format (more than 2**30 pixels).
    """
    height, width = image_size
    num_values = CHANNELS * height * width
    if num_values > _MOST_VALUES:
        raise ValueError(f"an image of {height} x {width} is too large for Label Studio's masks")
    lengths, are_set = _split_long(np.diff(_edges(crop, image_size)) * CHANNELS)
    size_class = np.searchsorted(1 << LENGTH_BITS, lengths)
    length_bits = LENGTH_BITS[size_class]
    codes = (4 + size_class) << length_bits | (lengths - 1)
    codes = codes << VALUE_BITS | np.where(are_set, 255, 0)
    header = num_values
    for value, num_bits in [(VALUE_BITS - 1, 5), *((int(bits) - 1, 4) for bits in LENGTH_BITS)]:
        header = header << num_bits | value
    codes = np.append(header, codes)
    return _packed(codes, np.append(_HEADER_BITS, 3 + length_bits + VALUE_BITS))


def _edges(crop: Crop, image_size: tuple[int, int]) -> NDArray[np.int64]:
    """Where the row-major stream of pixels starts, changes its value (first to one), and ends."""
    height, width = image_size
    rows = np.zeros((crop.pixels.shape[0], width), np.bool_)
    rows[:, crop.left : crop.left + crop.pixels.shape[1]] = crop.pixels
    return np.concatenate([[0], row_major_toggles(rows) + crop.top * width, [height * width]])


def _split_long(lengths: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Alternating runs as runs that the format can hold, none empty, and whether each is of ones."""
    pieces = -(-lengths // _LONGEST)
    are_set = np.repeat(np.arange(lengths.size) % 2 == 1, pieces)
    split = np.full(are_set.size, _LONGEST, np.int64)
    filled = pieces > 0
    split[np.cumsum(pieces)[filled] - 1] = (lengths[filled] - 1) % _LONGEST + 1
    return split, are_set


def _packed(codes: NDArray[np.int64], num_bits: NDArray[np.int64]) -> list[int]:
    """Numbers of various widths as one stream of bits."""
    stops = np.cumsum(num_bits)
    shifts = np.repeat(stops, num_bits) - 1 - np.arange(stops[-1])
    bits = np.repeat(codes, num_bits) >> shifts & 1
    return np.packbits(bits.astype(np.uint8)).tolist()
