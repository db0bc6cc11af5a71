"""What rows look like between the stages, and how a row fails."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

ERROR_COLUMNS = ("stage", "error_code", "error_message")
MAX_MESSAGE_LENGTH = 500

# Added by fetch_decode. The pixels are raw RGB bytes, so that a worker reads them without a copy.
DECODED = pa.schema(
    [
        ("pixels", pa.large_binary()),
        ("pixels_height", pa.int32()),
        ("pixels_width", pa.int32()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("exif_orientation", pa.int8()),
        *((name, pa.string()) for name in ERROR_COLUMNS),
    ]
)

# Put by segment in the place of the pixels: N detections as raw float32 (labels int64) bytes.
DETECTION_FIELDS = (("boxes", np.float32), ("scores", np.float32), ("labels", np.int64), ("masks", np.float32))


@dataclass(frozen=True)
class RowError:
    """Why a row failed: the stage, a stable code for machines, a message for people (no credentials in it)."""

    stage: str
    code: str
    message: str

    def __post_init__(self) -> None:
        if len(self.message) > MAX_MESSAGE_LENGTH:
            object.__setattr__(self, "message", self.message[: MAX_MESSAGE_LENGTH - 1] + "…")


def error_arrays(errors: Sequence[RowError | None]) -> list[pa.Array]:
    """The three error columns, null where there is no error."""
    return [
        pa.array([None if e is None else getattr(e, field) for e in errors], pa.string())
        for field in ("stage", "code", "message")
    ]


def read_errors(rows: pa.Table) -> list[RowError | None]:
    """What `error_arrays` made the columns of, for each row."""
    columns = (rows[name].to_pylist() for name in ERROR_COLUMNS)
    return [
        None if code is None else RowError(stage, code, message) for stage, code, message in zip(*columns, strict=True)
    ]


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
