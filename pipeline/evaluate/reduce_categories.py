"""The sorted records of one category -> its curves, and what its metrics come to: the reduce of the evaluation.

A plain function on picklable values; `measure` has it run as tasks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.evaluate.analysis import AnalysisPlan, sorted_metrics
from pipeline.metrics.ap.accumulate import Accumulator
from pipeline.metrics.ap.matching import NUM_THRESHOLDS
from pipeline.metrics.ap.sorted_runs import SortedRun, merge_runs
from pipeline.metrics.metric import CategoryMetric
from pipeline.metrics.protocol import CocoProtocol
from pipeline.metrics.streams import ERRORS_STREAM, stream_dtype
from pipeline.storage.objects.open import open_objects
from pipeline.storage.uris import Uri
from pipeline.tables.arrays import Int64s

CURVES = "curves"


@dataclass(frozen=True)
class ReducePlan:
    """What the reduce does, the same for all categories. Picklable.

    Attributes:
        protocol: how many detections count.
        analysis: what else the records give; ``None``: curves only.
        scratch_uri: where the records lie.
    """

    protocol: CocoProtocol
    analysis: AnalysisPlan | None
    scratch_uri: Uri


@dataclass(frozen=True)
class CategoryWork:
    """The records of one category in one stream.

    Attributes:
        category: position among the categories.
        stream: what was compared, or `ERRORS_STREAM`.
        runs: the category's, one of each group that has records of it.
        num_objects: [A] objects that count, or [V] of the variants of `ERRORS_STREAM`.
    """

    category: int
    stream: str
    runs: tuple[SortedRun, ...]
    num_objects: Int64s

    @property
    def num_records(self) -> int:
        """In all runs."""
        return sum(chunk.num_records for run in self.runs for chunk in run.chunks)


@dataclass(frozen=True)
class Reduced:
    """What came of a `CategoryWork`.

    Attributes:
        category: position among the categories.
        stream: what was compared, or `ERRORS_STREAM`.
        results: of each metric of the stream, by its name in `sorted_metrics`; of what was compared also `CURVES`,
            a `CategoryResult`.
    """

    category: int
    stream: str
    results: Mapping[str, Any]


def reduce_category(plan: ReducePlan, work: CategoryWork) -> Reduced:
    """Go once through the records of a category, in memory that does not grow with them."""
    metrics = _metrics(plan, work)
    for records in merge_runs(open_objects(plan.scratch_uri), work.runs, stream_dtype(work.stream)):
        for metric in metrics.values():
            metric.update(records)
    return Reduced(work.category, work.stream, {name: metric.result() for name, metric in metrics.items()})


def _metrics(plan: ReducePlan, work: CategoryWork) -> dict[str, CategoryMetric[Any]]:
    metrics: dict[str, CategoryMetric[Any]] = {}
    if work.stream != ERRORS_STREAM:
        metrics[CURVES] = Accumulator(work.num_objects, NUM_THRESHOLDS, plan.protocol.max_dets)
    for name, metric in (sorted_metrics(plan.analysis) if plan.analysis else {}).items():
        if metric.stream == work.stream:
            metrics[name] = metric.start(work.num_objects)
    return metrics
