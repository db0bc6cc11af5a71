"""What a stage is: a callable from rows to rows, bound to a guard and to whoever counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

import pyarrow as pa

from pipeline.annotations.failure import ImageFailure

FIRST_FAILED = 3


@dataclass(frozen=True)
class StageCounts:
    """What stages did; counts of several calls, or of several stages, add up.

    Attributes:
        fetch_s, decode_s, segment_s, encode_s, write_s: seconds of work, summed over workers.
        decoded, segmented, encoded, written: rows that came out of the stage, failed ones included.
        batches, batched: calls of the model, and images in them.
        detections: on the images that were encoded.
        files: data files that were written.
        failed: images that came out failed, by error code: counted when the model's stage is behind them, which all
            images pass soon, and where encoding fails.
        first_failed: the first `FIRST_FAILED` of them, each as ``id: code: message``; an image that failed in two
            attempts is there once.
    """

    fetch_s: float = 0.0
    decode_s: float = 0.0
    decoded: int = 0
    segment_s: float = 0.0
    segmented: int = 0
    batches: int = 0
    batched: int = 0
    encode_s: float = 0.0
    encoded: int = 0
    detections: int = 0
    write_s: float = 0.0
    written: int = 0
    files: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    first_failed: tuple[str, ...] = ()

    def __add__(self, other: StageCounts) -> StageCounts:
        sums = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        sums["first_failed"] = tuple(dict.fromkeys(sums["first_failed"]))[:FIRST_FAILED]
        return StageCounts(**sums)


def failures(failed: Sequence[tuple[Hashable, ImageFailure]]) -> dict[str, Any]:
    """The fields of `StageCounts` that tell of images that failed, from their ids and errors."""
    return {
        "failed": Counter(error.code for _, error in failed),
        "first_failed": tuple(f"{i}: {error.code}: {error.message}" for i, error in failed[:FIRST_FAILED]),
    }


Report = Callable[[StageCounts], None]


class Stage(Protocol):
    """Takes any number of rows and gives a row for each, in their order; a row that fails says so and goes on.

    The first one, `pipeline.annotate.stages.fetch_decode.FetchDecode`, gives them by and by and in an order of its own;
    the last one, `pipeline.annotate.stages.write.Write`, gives no rows but the file. What a stage needs beside the
    rows is bound when it is made: settings, a `pipeline.annotate.stages.guard.Guard` where rows can kill the process,
    and a `Report`, called once for each table. A stage pickles, unless it holds the model.
    """

    def __call__(self, rows: pa.Table, /) -> pa.Table: ...
