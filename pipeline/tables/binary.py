"""Columns of raw bytes, read without a copy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa


def binary_views(column: pa.ChunkedArray | pa.Array) -> list[memoryview | None]:
    """Zero-copy views of a large_binary column's values; None where null."""
    views: list[memoryview | None] = []
    for chunk in column.chunks if isinstance(column, pa.ChunkedArray) else [column]:
        _, offsets_buffer, data = chunk.buffers()
        offsets = np.frombuffer(offsets_buffer, np.int64)[chunk.offset : chunk.offset + len(chunk) + 1]
        memory = memoryview(data) if data is not None else memoryview(b"")
        valid = chunk.is_valid().to_numpy(zero_copy_only=False)
        views += [memory[offsets[i] : offsets[i + 1]] if valid[i] else None for i in range(len(chunk))]
    return views


def binary_array(values: Sequence[np.ndarray | None]) -> pa.Array:
    """A large_binary array of contiguous arrays' bytes, each copied once."""
    sizes = np.array([0 if v is None else v.nbytes for v in values], np.int64)
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    data = np.empty(int(offsets[-1]), np.uint8)
    for value, start, end in zip(values, offsets[:-1], offsets[1:], strict=True):
        if value is not None:
            data[start:end] = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
    valid = np.array([v is not None for v in values], bool)
    bitmap = pa.py_buffer(np.packbits(valid, bitorder="little").tobytes())
    return pa.Array.from_buffers(
        pa.large_binary(), len(values), [bitmap, pa.py_buffer(offsets), pa.py_buffer(data)], int((~valid).sum())
    )
