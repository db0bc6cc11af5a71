"""Per category the score from which on detections are as often right as wanted.

A threshold keeps every detection with ``score >= threshold``, all of equal score or none. Intervals are Wilson's (1927)
for 95 %; they take detections as independent, which those of one image are not quite, so they are a little too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

from pipeline.metrics.ap.records import HIT_IOU, Records, scored_hits
from pipeline.metrics.protocol import IouType
from pipeline.tables.arrays import Float64s, Int64s

CONFIDENCE = 0.95


class Proportion(NamedTuple):
    """A measured share with its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class ClassThreshold:
    """The operating point of one category.

    Attributes:
        threshold: the lowest score that reaches the wanted precision; ``None`` if none does, like the next two.
        precision: of the detections from the threshold on.
        recall: of them; ``None`` also without objects.
        labels: detections from the threshold on, those in crowd regions left out; 0 without a threshold.
        objects: to be found; crowd regions left out.
        best_f1: highest F1 at any score; ``None`` without a true positive, like the next.
        best_f1_threshold: the highest score that reaches it.
    """

    threshold: float | None
    precision: Proportion | None
    recall: Proportion | None
    labels: int
    objects: int
    best_f1: float | None
    best_f1_threshold: float | None


@dataclass(frozen=True)
class ThresholdFigures:
    """Of K categories.

    Attributes:
        categories: the operating point of each.
        wanted_precision: that the thresholds are to reach.
        iou_type: what was compared: masks or boxes.
    """

    categories: Sequence[ClassThreshold]
    wanted_precision: float
    iou_type: IouType

    def to_json(self, names: Sequence[str]) -> dict[str, Any]:
        """The section of metrics.json."""
        return {
            "wanted_precision": self.wanted_precision,
            "iou_threshold": HIT_IOU,
            "iou_type": self.iou_type,
            "classes": [_row(name, each) for name, each in zip(names, self.categories, strict=True)],
        }


def _row(name: str, at: ClassThreshold) -> dict[str, Any]:
    plain = {k: v for k, v in asdict(at).items() if k not in ("precision", "recall")}
    return {"name": name, **plain, **_interval("precision", at.precision), **_interval("recall", at.recall)}


def _interval(key: str, share: Proportion | None) -> dict[str, float | None]:
    value, low, high = share or (None, None, None)
    return {key: value, f"{key}_low": low, f"{key}_high": high}


class ThresholdTracker:
    """Looks for the operating point of one category, a `CategoryMetric`."""

    def __init__(self, wanted_precision: float, num_objects: int) -> None:
        """Begin with no detections.

        Args:
            wanted_precision: above 0, at most 1.
            num_objects: of the category, crowd regions left out.

        Raises:
            ValueError: another precision.
        """
        if not 0 < wanted_precision <= 1:
            raise ValueError(f"the wanted precision must be above 0 and at most 1, not {wanted_precision}")
        self._wanted = wanted_precision
        self._num_objects = num_objects
        self._num_true = self._num_labels = 0
        self._last_score: float | None = None
        self._lowest: tuple[float, int, int] | None = None  # score, true positives, labels
        self._best_f1: tuple[float, float] | None = None  # F1, score

    def update(self, records: Records) -> None:
        """Add records of AP with bit 0 for an IoU of 0.5 and range 0 for all areas, none better than an earlier one."""
        scores, hits = scored_hits(records)
        if not len(scores):
            return
        if scores[0] != self._last_score:
            self._settle_last()
        num_true = self._num_true + np.cumsum(hits, dtype=np.int64)
        num_labels = self._num_labels + np.arange(1, len(scores) + 1)
        # Where a score ends: only there a threshold can cut. The last one may go on in the next call.
        ends = np.flatnonzero(scores[1:] != scores[:-1])
        self._settle(scores[ends], num_true[ends], num_labels[ends])
        self._last_score = float(scores[-1])
        self._num_true, self._num_labels = int(num_true[-1]), int(num_labels[-1])

    def result(self) -> ClassThreshold:
        """The operating point of all records so far."""
        self._settle_last()
        best_f1, best_f1_threshold = self._best_f1 or (None, None)
        threshold, num_true, labels = self._lowest or (None, 0, 0)
        precision = recall = None
        if threshold is not None:
            precision = wilson_interval(num_true, labels)
            recall = wilson_interval(num_true, self._num_objects) if self._num_objects else None
        return ClassThreshold(threshold, precision, recall, labels, self._num_objects, best_f1, best_f1_threshold)

    def _settle_last(self) -> None:
        if self._last_score is not None:
            counts = np.array([[self._num_true], [self._num_labels]], np.int64)
            self._settle(np.array([self._last_score]), *counts)

    def _settle(self, scores: Float64s, num_true: Int64s, num_labels: Int64s) -> None:
        """Look at thresholds [n] with the counts [n] of what each keeps."""
        if not len(scores):
            return
        good = np.flatnonzero(num_true / num_labels >= self._wanted)
        if good.size:
            last = good[-1]
            self._lowest = float(scores[last]), int(num_true[last]), int(num_labels[last])
        f1 = 2 * num_true / (num_labels + self._num_objects)
        best = int(f1.argmax())
        if f1[best] > (self._best_f1 or (0.0, 0.0))[0]:
            self._best_f1 = float(f1[best]), float(scores[best])


def wilson_interval(successes: int, trials: int) -> Proportion:
    """A share of at least one trial, with its 95 % score interval."""
    z = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)
    share = successes / trials
    scale = 1 + z * z / trials
    centre = (share + z * z / (2 * trials)) / scale
    half = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials)) / scale
    # Rounding may push an end past the share where that is 0 or 1.
    return Proportion(share, max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half)))
