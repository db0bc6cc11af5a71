"""The one list of what is worked out beyond AP. Each metric is a section of metrics.json, in this order.

A new metric is a module in ``pipeline.metrics.analysis`` and an entry here; where its section of metrics.json has a
template of the same name (``report/templates/sections``), the report shows it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pipeline.evaluate.config import AnalysisConfig
from pipeline.metrics.analysis.calibration import CalibrationCounter, CalibrationFigures
from pipeline.metrics.analysis.confusion import ConfusionMatrix
from pipeline.metrics.analysis.thresholds import ThresholdFigures, ThresholdTracker
from pipeline.metrics.analysis.tide import ErrorTracker, error_summary
from pipeline.metrics.metric import CategoryMetric, Figures, Metric
from pipeline.metrics.protocol import IouType
from pipeline.metrics.streams import ERRORS_STREAM
from pipeline.storage.uris import Uri
from pipeline.tables.arrays import Int64s


@dataclass(frozen=True)
class AnalysisPlan:
    """How it is worked out. Picklable.

    Attributes:
        settings: the config's ``analysis`` section.
        iou_type: what overlaps are of.
        images_per_class: worst and best images to keep of each category.
        matches_uri: folder of the match table.
    """

    settings: AnalysisConfig
    iou_type: IouType
    images_per_class: int
    matches_uri: Uri


class SortedMetric(NamedTuple):
    """A metric of sorted records.

    Attributes:
        stream: of the records: what was compared, or `ERRORS_STREAM`.
        start: begins a category, of which ``num_objects`` [A] (or [V]) objects count.
        join: what all categories come to, in the order of their ids.
    """

    stream: str
    start: Callable[[Int64s], CategoryMetric[Any]]
    join: Callable[[Sequence[Any]], Figures]


def block_metrics(plan: AnalysisPlan, num_categories: int) -> dict[str, Metric]:
    """What is added up over blocks of images; empty."""
    return {
        "confusion": ConfusionMatrix(num_categories, plan.settings.score_threshold),
    }


def sorted_metrics(plan: AnalysisPlan) -> dict[str, SortedMetric]:
    """What goes along the sorted records of each category."""
    wanted = plan.settings.wanted_precision
    return {
        "errors": SortedMetric(ERRORS_STREAM, ErrorTracker, error_summary),
        "calibration": SortedMetric(plan.iou_type, lambda _: CalibrationCounter(), CalibrationFigures),
        "thresholds": SortedMetric(
            plan.iou_type,
            lambda num_objects: ThresholdTracker(wanted, int(num_objects[0])),
            lambda categories: ThresholdFigures(categories, wanted, plan.iou_type),
        ),
    }
