"""COCO run-length strings -> pixels, of the part of the image that holds ones and no other.

Decoding the whole image takes time with its size, and most objects fill a few hundredths of it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.masks.rle import decode_runs


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
        DamagedRle: they are not the run lengths of an image of this size.
    """
    height, _ = image_size
    runs, _ = decode_runs([counts.encode()], np.array(image_size))
    edges = np.cumsum(runs)
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
