"""Ids of images as Arrow arrays: one type for each kind, and a hash."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.tables.arrow_types import in_one_piece

UInt64Array = NDArray[np.uint64]


_BLOCK_ROWS = 1 << 15  # whose words stay in a core's cache
_ODD = np.uint64(0x9E3779B97F4A7C15)


def hash_ids(ids: pa.Array) -> UInt64Array:
    """64 well mixed bits of each id, equal for equal ids.

    Args:
        ids: ``int64`` or ``large_string``, without nulls.
    """
    if pa.types.is_int64(ids.type):
        return _mix(ids.to_numpy().view(np.uint64))
    _, offsets_buffer, data_buffer = ids.buffers()
    offsets = np.frombuffer(offsets_buffer, np.int64)[ids.offset : ids.offset + len(ids) + 1]
    data = np.frombuffer(data_buffer, np.uint8) if data_buffer else np.empty(0, np.uint8)
    hashes = np.empty(len(ids), np.uint64)
    for first in range(0, len(ids), _BLOCK_ROWS):
        bounds = offsets[first : first + _BLOCK_ROWS + 1]
        _hash_texts(data[bounds[0] : bounds[-1]], bounds - bounds[0], hashes[first : first + _BLOCK_ROWS])
    return hashes


def _hash_texts(data: NDArray[np.uint8], offsets: NDArray[np.int64], hashes: UInt64Array) -> None:
    starts, lengths = offsets[:-1], np.diff(offsets)
    padded = np.zeros(len(data) + 8, np.uint8)  # so that eight bytes may be read from anywhere
    padded[: len(data)] = data
    words = np.ndarray((len(data) + 1,), "<u8", buffer=padded, strides=(1,))
    hashes[:] = lengths
    shortest, longest = int(lengths.min()), int(lengths.max())
    for at in range(0, shortest - 7, 8):
        hashes ^= words[starts + at]
        _stir(hashes)
    for at in range(shortest // 8 * 8, longest, 8):
        alive = np.flatnonzero(lengths > at)
        word = words[starts[alive] + at]
        bits_behind_end = np.clip(at + 8 - lengths[alive], 0, 7).astype(np.uint64) * np.uint64(8)
        some = hashes[alive] ^ (word << bits_behind_end)
        _stir(some)
        hashes[alive] = some
    hashes[:] = _mix(hashes)


def _stir(values: UInt64Array) -> None:
    """In place, and so that two values stay two: the next word must not undo what the last one changed."""
    values *= _ODD
    values ^= values >> np.uint64(32)


def _mix(values: UInt64Array) -> UInt64Array:
    """The finaliser of splitmix64: every bit of the input reaches every bit of the output."""
    values = values + _ODD
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def wide_type(id_type: pa.DataType) -> pa.DataType:
    """What ids of a manifest's type are joined as."""
    return pa.int64() if pa.types.is_integer(id_type) else pa.large_string()  # string ends at 2 GB an array


def wide(ids: pa.Array) -> pa.Array:
    """Integers or texts of any width, as what they are joined as."""
    return ids.cast(pa.int64() if pa.types.is_integer(ids.type) else pa.large_string())


def concat_ids(arrays: Sequence[pa.Array | pa.ChunkedArray], kind: pa.DataType) -> pa.Array:
    """All of one side's arrays, of which there may be none, as one of this type (`wide_type`).

    They are cast and copied together: of thousands of short ones a call for each would take longer than the work.
    """
    chunks = [chunk for array in arrays for chunk in (array.chunks if isinstance(array, pa.ChunkedArray) else [array])]
    return in_one_piece(pa.chunked_array(chunks).cast(kind)) if chunks else pa.array([], kind)
