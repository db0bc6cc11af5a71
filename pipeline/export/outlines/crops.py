"""COCO run-length strings -> pixels, of the part of the image that holds ones and no other.

Decoding the whole image takes time with its size, and most objects fill a few hundredths of it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Crop(NamedTuple):
    """The smallest part of a mask that holds all its ones.

    Attributes:
        left: first column, in pixels of the image.
        top: first row, likewise.
        pixels: [height, width] bool; at least one is set in each outer row and column.
    """

    left: int
    top: int
    pixels: NDArray[np.bool_]


def crop_of(counts: str, image_size: tuple[int, int]) -> Crop | None:
    """Decode one mask; ``None`` where it has no ones.

    Args:
        counts: COCO's compressed run lengths.
        image_size: (H, W) in pixels.

    Raises:
        ValueError: they are not the run lengths of an image of this size.
    """
    height, width = image_size
    edges = np.cumsum(run_lengths(counts))
    if edges[-1] != height * width:
        raise ValueError(f"run lengths of {edges[-1]} pixels for an image of {height} x {width}")
    starts, ends = edges[: edges.size // 2 * 2 : 2], edges[1::2]
    starts, ends = starts[ends > starts], ends[ends > starts]
    if not starts.size:
        return None
    first, last = starts // height, (ends - 1) // height
    left, right = int(first[0]), int(last[-1]) + 1
    if (first != last).any():  # a run goes on in the next column: there are ones in the last and the first row
        top, bottom = 0, height
    else:
        top, bottom = int((starts - first * height).min()), int((ends - last * height).max())
    begin = (first - left) * (bottom - top) + starts - first * height - top
    toggles = np.zeros((right - left) * (bottom - top) + 1, np.int8)
    toggles[begin] = 1
    toggles[begin + ends - starts] -= 1
    pixels = np.cumsum(toggles[:-1], dtype=np.int8).astype(np.bool_)
    return Crop(left, top, pixels.reshape(right - left, bottom - top).T)


def row_major_toggles(pixels: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Where the stream of pixels, row by row, changes its value; before the first and after the last there are zeros.

    Args:
        pixels: [H, W] bool, a mask or a part of one.

    Returns:
        Ascending positions, of even number; ones start at the first, zeros at the second, and so on. The last may be
        H * W.
    """
    stream = np.zeros(pixels.size + 2, np.bool_)
    stream[1:-1].reshape(pixels.shape)[...] = pixels
    return np.flatnonzero(stream[1:] != stream[:-1])


def run_lengths(counts: str) -> NDArray[np.int64]:
    """The alternating runs of zeros and ones that a compressed string stands for (``rleFrString`` of the COCO API).

    Raises:
        ValueError: characters that do not belong there, or a last number that is cut off.
    """
    groups = np.frombuffer(counts.encode(), np.uint8).astype(np.int64) - 48
    stops = np.flatnonzero((groups & 32) == 0)
    if not groups.size or groups.min() < 0 or groups.max() > 63 or stops.size == 0 or stops[-1] != groups.size - 1:
        raise ValueError("not a compressed run-length string")
    starts = np.append(0, stops[:-1] + 1)
    num_groups = stops - starts + 1
    shifts = 5 * (np.arange(groups.size) - np.repeat(starts, num_groups))
    values = np.add.reduceat((groups & 31) << shifts, starts)
    values -= ((groups[stops] & 16) != 0).astype(np.int64) << (5 * num_groups)
    # From the fourth run on a number is the difference to the run before last.
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    if values.min() < 0:
        raise ValueError("run-length string with a negative run")
    return values
