"""Ids of images as Arrow arrays: one type for each kind, and a hash."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

UInt64Array = NDArray[np.uint64]


def hash_ids(ids: pa.Array) -> UInt64Array:
    """64 well mixed bits of each id, equal for equal ids.

    Args:
        ids: ``int64`` or ``large_string``, without nulls.
    """
    if pa.types.is_int64(ids.type):
        return _mix(ids.to_numpy().view(np.uint64))
    _, offsets_buffer, data_buffer = ids.buffers()
    offsets = np.frombuffer(offsets_buffer, np.int64)[ids.offset : ids.offset + len(ids) + 1]
    starts, lengths = offsets[:-1] - offsets[0], np.diff(offsets)
    size = int(lengths.sum())
    padded = np.zeros(size + 8, np.uint8)  # so that eight bytes may be read from anywhere
    if size:
        padded[:size] = np.frombuffer(data_buffer, np.uint8)[offsets[0] : offsets[-1]]
    words = np.ndarray((size + 1,), "<u8", buffer=padded, strides=(1,))
    hashes = _mix(lengths.astype(np.uint64))
    alive = np.arange(len(ids))
    for at in range(0, int(lengths.max(initial=0)), 8):
        alive = alive[lengths[alive] > at]
        word = words[starts[alive] + at]
        bits_behind_end = np.clip(at + 8 - lengths[alive], 0, 7).astype(np.uint64) * np.uint64(8)
        hashes[alive] = _mix(hashes[alive] ^ (word << bits_behind_end))
    return hashes


def _mix(values: UInt64Array) -> UInt64Array:
    """The finaliser of splitmix64: every bit of the input reaches every bit of the output."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def wide_type(id_type: pa.DataType) -> pa.DataType:
    """What ids of a manifest's type are joined as."""
    return pa.int64() if pa.types.is_integer(id_type) else pa.large_string()  # string ends at 2 GB an array


def wide(ids: pa.Array) -> pa.Array:
    """Integers or texts of any width, as what they are joined as."""
    return ids.cast(pa.int64() if pa.types.is_integer(ids.type) else pa.large_string())


def concat_ids(arrays: list[pa.Array], kind: pa.DataType) -> pa.Array:
    """One array of arrays of one type, of which there may be none."""
    return pa.concat_arrays(arrays) if arrays else pa.array([], kind)
