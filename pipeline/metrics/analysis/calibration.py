"""Whether a score of 0.8 means right in 80 % of the cases: the reliability curve and its mean error.

The expected calibration error is that of Guo et al. ("On Calibration of Modern Neural Networks", ICML 2017), in the
form that detection has (Küppers et al., "Multivariate Confidence Calibration for Object Detection", CVPR Workshops
2020): with precision in the place of accuracy, as nothing is known about what was never detected.

Legend: B bins of equal width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np

from pipeline.metrics.ap.records import Records, scored_hits
from pipeline.metrics.metric import nan_to_null
from pipeline.tables.arrays import Float64s, Int64s

NUM_BINS = 20
# Not linspace, whose 0.35 is above 0.35.
BIN_EDGES = np.arange(NUM_BINS + 1) / NUM_BINS


@dataclass(frozen=True)
class Calibration:
    """Counts per bin of the score.

    Attributes:
        counts: [B] detections with ``edge <= score < next edge``; 1 belongs to the last bin. Scores beyond 0 to 1
            are counted in the outermost bins.
        num_true: [B] of them, true positives.
        score_sums: [B] of the same detections.
    """

    counts: Int64s
    num_true: Int64s
    score_sums: Float64s

    @classmethod
    def of_all(cls, categories: Sequence[Calibration]) -> Calibration:
        """Of all detections of K categories together, K at least 1; the last bit of the sums is that of their order."""
        columns = zip(*((each.counts, each.num_true, each.score_sums) for each in categories), strict=True)
        return cls(*(reduce(np.add, column) for column in columns))

    @property
    def precisions(self) -> Float64s:
        """[B] NaN for empty bins."""
        return self._means(self.num_true)

    @property
    def mean_scores(self) -> Float64s:
        """[B] NaN for empty bins."""
        return self._means(self.score_sums)

    @property
    def expected_error(self) -> float | None:
        """Mean distance of score and precision over the bins, weighted with their counts; None without detections."""
        total = int(self.counts.sum())
        return float(np.abs(self.score_sums - self.num_true).sum() / total) if total else None

    def _means(self, sums: Int64s | Float64s) -> Float64s:
        return np.divide(sums, self.counts, out=np.full(NUM_BINS, np.nan), where=self.counts > 0)


@dataclass(frozen=True)
class CalibrationFigures:
    """Of K categories."""

    categories: Sequence[Calibration]

    def to_json(self, names: Sequence[str]) -> dict[str, Any]:
        """The section of metrics.json."""
        overall = Calibration.of_all(self.categories)
        return {
            "bin_edges": BIN_EDGES.tolist(),
            "overall": {
                "count": overall.counts.tolist(),
                "mean_score": nan_to_null(overall.mean_scores),
                "precision": nan_to_null(overall.precisions),
                "ece": overall.expected_error,
            },
            "per_class": [
                {"name": name, "ece": each.expected_error, "count": int(each.counts.sum())}
                for name, each in zip(names, self.categories, strict=True)
            ],
        }


class CalibrationCounter:
    """Counts the records of one category, a `CategoryMetric`: bit 0 for an IoU of 0.5, range 0 for all areas."""

    def __init__(self) -> None:
        self._counts = np.zeros(NUM_BINS, np.int64)
        self._num_true = np.zeros(NUM_BINS, np.int64)
        self._score_sums = np.zeros(NUM_BINS)

    def update(self, records: Records) -> None:
        """Add records of AP."""
        scores, hits = scored_hits(records)
        bins = np.searchsorted(BIN_EDGES[1:-1], scores, side="right")
        self._counts += np.bincount(bins, minlength=NUM_BINS)
        self._num_true += np.bincount(bins[hits], minlength=NUM_BINS)
        np.add.at(self._score_sums, bins, scores)  # one by one, in order

    def result(self) -> Calibration:
        """The counts so far."""
        return Calibration(self._counts.copy(), self._num_true.copy(), self._score_sums.copy())
