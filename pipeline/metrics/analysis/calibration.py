"""Whether a score of 0.8 means right in 80 % of the cases: the reliability curve and its mean error.

The expected calibration error is that of Guo et al. ("On Calibration of Modern Neural Networks", ICML 2017), in the
form that detection has (Küppers et al., "Multivariate Confidence Calibration for Object Detection", CVPR Workshops
2020): with precision in the place of accuracy, as nothing is known about what was never detected.

Legend: B bins of equal width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.metrics.ap.hits import scored_hits
from pipeline.metrics.ap.records import Records
from pipeline.tables.arrays import Float64s, Int64s

NUM_BINS = 20
# Not linspace, whose 0.35 is above 0.35.
BIN_EDGES = np.arange(NUM_BINS + 1) / NUM_BINS


@dataclass(frozen=True)
class Calibration:
    """Counts per bin of the score; categories add up.

    Attributes:
        counts: [B] detections with ``edge <= score < next edge``; 1 belongs to the last bin. Scores beyond 0 to 1
            are counted in the outermost bins.
        num_true: [B] of them, true positives.
        score_sums: [B].
    """

    counts: Int64s
    num_true: Int64s
    score_sums: Float64s

    def __add__(self, other: Calibration) -> Calibration:
        return Calibration(
            self.counts + other.counts, self.num_true + other.num_true, self.score_sums + other.score_sums
        )

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


class CalibrationCounter:
    """Counts the records of one category, in any chunks: the last bit of the sums does not depend on them."""

    def __init__(self) -> None:
        self._counts = np.zeros(NUM_BINS, np.int64)
        self._num_true = np.zeros(NUM_BINS, np.int64)
        self._score_sums = np.zeros(NUM_BINS)

    def push(self, records: Records) -> None:
        """Add records of AP with bit 0 for an IoU of 0.5 and range 0 for all areas."""
        scores, hits = scored_hits(records)
        bins = np.searchsorted(BIN_EDGES[1:-1], scores, side="right")
        self._counts += np.bincount(bins, minlength=NUM_BINS)
        self._num_true += np.bincount(bins[hits], minlength=NUM_BINS)
        np.add.at(self._score_sums, bins, scores)  # one by one, in order

    def result(self) -> Calibration:
        """The counts so far."""
        return Calibration(self._counts.copy(), self._num_true.copy(), self._score_sums.copy())
