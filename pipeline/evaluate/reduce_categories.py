"""The sorted records of one category -> its curves, calibration and threshold: the reduce of the evaluation.

A plain function on picklable values; `measure` has it run as tasks.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.evaluate.shuffle.sorted_runs import ERRORS_STREAM, SortedRun, merge_runs
from pipeline.metrics.analysis.calibration import Calibration, CalibrationCounter
from pipeline.metrics.analysis.thresholds import ClassThreshold, ThresholdTracker
from pipeline.metrics.analysis.tide import MAX_DETECTIONS, VARIANT_RECORD
from pipeline.metrics.ap.accumulate import Accumulator, CategoryResult
from pipeline.metrics.ap.matching import NUM_THRESHOLDS
from pipeline.metrics.ap.records import RECORD
from pipeline.metrics.protocol import CocoProtocol
from pipeline.storage.objects.open import open_objects
from pipeline.tables.arrays import Int64s


@dataclass(frozen=True)
class CategoryWork:
    """The records of one category in one stream.

    Attributes:
        category: position.
        stream: what was compared, or `ERRORS_STREAM`.
        runs: of all groups.
        num_objects: [A] that count, or [V] of the variants of `ERRORS_STREAM`.
        wanted_precision: of the threshold; ``None``: neither threshold nor calibration are wanted.
    """

    category: int
    stream: str
    runs: tuple[SortedRun, ...]
    num_objects: Int64s
    wanted_precision: float | None = None

    @property
    def num_records(self) -> int:
        """In all runs."""
        return sum(chunk.num_records for run in self.runs for chunk in run.chunks)


@dataclass(frozen=True)
class Reduced:
    """What came of a `CategoryWork`; the last two where they were wanted."""

    category: int
    stream: str
    curves: CategoryResult
    calibration: Calibration | None = None
    threshold: ClassThreshold | None = None


def reduce_category(work: CategoryWork, protocol: CocoProtocol, scratch_uri: str) -> Reduced:
    """Go once through the records of a category, in memory that does not grow with them."""
    if work.stream == ERRORS_STREAM:
        dtype, accumulator = VARIANT_RECORD, Accumulator(work.num_objects, 1, (MAX_DETECTIONS,))
    else:
        dtype, accumulator = RECORD, Accumulator(work.num_objects, NUM_THRESHOLDS, protocol.max_dets)
    counter = tracker = None
    if work.wanted_precision is not None:
        counter, tracker = CalibrationCounter(), ThresholdTracker(work.wanted_precision, int(work.num_objects[0]))
    for records in merge_runs(open_objects(scratch_uri), work.runs, dtype):
        accumulator.push(records)
        if counter and tracker:
            counter.push(records)
            tracker.push(records)
    return Reduced(
        work.category,
        work.stream,
        accumulator.result(),
        counter.result() if counter else None,
        tracker.result() if tracker else None,
    )
