"""What a stage is: a callable from rows to rows, bound to a guard and to whoever counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Protocol

import pyarrow as pa


@dataclass(frozen=True)
class StageCounts:
    """What stages did; counts of several calls, or of several stages, add up.

    Attributes:
        fetch_s, decode_s, segment_s, encode_s, write_s: seconds of work, summed over workers.
        decoded, segmented, encoded, written: rows that came out of the stage, failed ones included.
        detections: on the images that were encoded.
        files: data files that were written.
        failed: images that came out failed, by error code: counted when the model's stage is behind them, which all
            images pass soon, and where encoding fails.
    """

    fetch_s: float = 0.0
    decode_s: float = 0.0
    decoded: int = 0
    segment_s: float = 0.0
    segmented: int = 0
    encode_s: float = 0.0
    encoded: int = 0
    detections: int = 0
    write_s: float = 0.0
    written: int = 0
    files: int = 0
    failed: Counter[str] = field(default_factory=Counter)

    def __add__(self, other: StageCounts) -> StageCounts:
        return StageCounts(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


Report = Callable[[StageCounts], None]


class Stage(Protocol):
    """Takes any number of rows and gives a row for each, in their order; a row that fails says so and goes on.

    Only the last one, `pipeline.annotate.stages.write.Write`, gives no rows but the file. What a stage needs beside the
    rows is bound when it is made: settings, a `pipeline.annotate.stages.guard.Guard` where rows can kill the process,
    and a `Report`, called once for each call. A stage pickles, unless it holds the model.
    """

    def __call__(self, rows: pa.Table, /) -> pa.Table: ...
