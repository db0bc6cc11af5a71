"""What rows look like between the stages, and how a row fails."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from pipeline.annotations.failure import ImageFailure

ERROR_COLUMNS = ("stage", "error_code", "error_message")

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


def error_arrays(errors: Sequence[ImageFailure | None]) -> list[pa.Array]:
    """The three error columns, null where there is no error."""
    return [
        pa.array([None if e is None else getattr(e, field) for e in errors], pa.string())
        for field in ("stage", "code", "message")
    ]


def read_errors(rows: pa.Table) -> list[ImageFailure | None]:
    """What `error_arrays` made the columns of, for each row."""
    columns = (rows[name].to_pylist() for name in ERROR_COLUMNS)
    return [
        None if code is None else ImageFailure(stage, code, message)
        for stage, code, message in zip(*columns, strict=True)
    ]
