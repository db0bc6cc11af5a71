"""Positions where binary masks change value -> COCO run-length encoding, for all masks of an image at once.

Legend: N masks; T toggles; S runs. A *toggle* is a position in the column-major pixel stream of one mask
(0 .. H * W) from which on every pixel is flipped. A mask is the sum modulo 2 of its toggles, so they may come in
any order, and two at one position cancel: the end of a full-height column and the start of the next one, say.
"""

from __future__ import annotations

from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

Int64Array = NDArray[np.int64]


class Rle(TypedDict):
    """COCO's compressed run-length encoding, as ``pycocotools.mask`` reads and writes it."""

    size: list[int]  # [H, W]
    counts: bytes


def toggle_stride(height: int, width: int) -> int:
    """Distance between the toggles of two successive masks: H * W is a position of its own."""
    return height * width + 1


def encode_toggles(toggles: Int64Array, num_masks: int, height: int, width: int) -> list[Rle]:
    """Encode masks given by their toggles.

    Args:
        toggles: [T] int64 in any order: ``mask * toggle_stride(H, W) + column * H + row``.
        num_masks: N, how many masks; one without toggles is empty.
        height, width: H and W of the image, in pixels.

    Returns:
        One RLE per mask, equal byte for byte to what ``pycocotools.mask.encode`` gives for its pixels.
    """
    if num_masks == 0:
        return []
    counts, runs_per_mask = _run_lengths(toggles, num_masks, toggle_stride(height, width))
    return [Rle(size=[height, width], counts=text) for text in _strings(counts, runs_per_mask)]


def _run_lengths(toggles: Int64Array, num_masks: int, stride: int) -> tuple[Int64Array, Int64Array]:
    """Lengths of the alternating runs of zeros and ones [S], mask after mask, and how many each mask has [N]."""
    ends = np.arange(1, num_masks + 1, dtype=np.int64) * stride - 1
    keys = np.concatenate([toggles, ends])
    keys.sort(kind="stable")  # they come as long ascending chains, which a merge sort takes as they are
    last = np.flatnonzero(np.append(keys[1:] != keys[:-1], True))
    multiplicity = np.diff(last, prepend=-1)
    keys = keys[last]
    # The end of a mask closes its last run whatever the parity there; a toggle on it adds no empty run.
    is_end = np.zeros(keys.size, np.bool_)
    is_end[np.searchsorted(keys, ends)] = True
    keep = np.flatnonzero((multiplicity & 1).astype(np.bool_) | is_end)
    keys = keys[keep]
    lengths = np.diff(keys, prepend=-1)
    stops = np.flatnonzero(is_end[keep]) + 1
    runs_per_mask = np.diff(stops, prepend=0)
    lengths[stops - runs_per_mask] -= 1  # a mask starts one position after the end of the previous one
    return lengths, runs_per_mask


def _strings(lengths: Int64Array, runs_per_mask: Int64Array) -> list[bytes]:
    """COCO's text form: from the fourth run on the difference to the run before last, in 5-bit groups.

    A group is one character from 48 on, lowest group first, with bit 32 set while more follow. A value takes the
    fewest groups k with -2**(5k - 1) <= value < 2**(5k - 1) (``rleToString`` of the COCO API).
    """
    firsts = np.cumsum(runs_per_mask) - runs_per_mask
    values = lengths.copy()
    values[2:] -= lengths[:-2]
    for position in range(3):
        starts = firsts[runs_per_mask > position] + position
        values[starts] = lengths[starts]
    magnitude = values ^ (values >> 63)
    num_groups = np.ones(values.size, np.int64)
    limit = int(magnitude.max())
    for bit in range(4, limit.bit_length(), 5):
        num_groups += magnitude >= 1 << bit
    stops = np.cumsum(num_groups)
    text = np.empty(int(stops[-1]), np.uint8)
    where = stops - num_groups
    while values.size:
        more = num_groups > 1
        text[where] = (values.astype(np.uint8) & 31) + 48 + (more.view(np.uint8) << 5)
        rest = np.flatnonzero(more)
        values, num_groups, where = values[rest] >> 5, num_groups[rest] - 1, where[rest] + 1
    cuts = stops[firsts + runs_per_mask - 1].tolist()
    raw = text.tobytes()
    return [raw[start:stop] for start, stop in zip([0, *cuts[:-1]], cuts, strict=True)]
