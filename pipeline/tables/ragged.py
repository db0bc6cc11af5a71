"""Lists of different lengths, one after the other in flat arrays: those of image i are offsets[i] to offsets[i + 1]."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.tables.arrays import Int64s


def offsets_of(lengths: NDArray[np.integer]) -> Int64s:
    """[N + 1] from [N] lengths."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def owners_of(lengths: NDArray[np.integer]) -> Int64s:
    """[D] which list each element is in."""
    return np.repeat(np.arange(len(lengths)), lengths)


def image_indices(offsets: Int64s) -> Int64s:
    """[D] which image each element is of."""
    return owners_of(np.diff(offsets))


def positions_in(lengths: NDArray[np.integer]) -> Int64s:
    """[D] place of each element in its list."""
    offsets = offsets_of(lengths)
    return np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)


def elements_of(offsets: Int64s, lists: Int64s) -> Int64s:
    """[D] indices of the elements of chosen lists, in the order in which the lists are chosen."""
    lengths = np.diff(offsets)[lists]
    return np.repeat(offsets[:-1][lists], lengths) + positions_in(lengths)
