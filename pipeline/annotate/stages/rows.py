"""What rows look like between the stages, and how a row fails.

A stage replaces the columns that only it needs:

    read ─ image_bytes ─► fetch_decode ─ pixels ... ─► segment ─ boxes, scores ... ─► encode ─► the output's schema

The manifest's carried columns pass all of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from pipeline.annotations.failure import ImageFailure
from pipeline.annotations.schema import OBJECT_COLUMNS
from pipeline.model.detections import DETECTION_ARRAYS

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
        *OBJECT_COLUMNS,
        *((name, pa.string()) for name in ERROR_COLUMNS),
    ]
)

# Names that rows have on their way and that no carried column may have. Segment puts a column of raw bytes for each
# array of the detections in the place of the pixels.
WORKING_NAMES = frozenset({"image_bytes", *DECODED.names, *DETECTION_ARRAYS})


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
