"""Records of one category in descending order of score -> precision and recall, in constant memory.

Legend: n records of one call; E events among them; T, R, A, M as in `protocol`.

COCOeval keeps the whole precision-recall curve, makes precision monotone and reads it at 101 recalls. Each of
these values is the highest precision anywhere from the first point of the curve that reaches the recall on. So
101 maxima per (threshold, range, limit) are enough: one for each stretch of the curve between two recalls.
Precision only falls between two true positives, so only *events* need looking at: records that are a true
positive somewhere, or a false one at some thresholds and not at others. All the others are counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.metrics.ap.records import Records
from pipeline.metrics.protocol import RECALL_THRESHOLDS
from pipeline.tables.arrays import Bools, Float64s, Int64s, Uint16s

NUM_RECALLS = len(RECALL_THRESHOLDS)

# Records looked at in one go: bounds the temporary arrays, about 3 kB for an event.
_CHUNK = 1 << 15


@dataclass(frozen=True)
class CategoryResult:
    """The arrays of ``COCOeval.eval`` for one category; -1 for ranges without objects.

    Attributes:
        precision: [T, R, A, M] highest one from each recall on.
        recall: [T, A, M] of all detections.
        scores: [T, R, A, M] score at which each recall is reached, 0 where it is not.
    """

    precision: Float64s
    recall: Float64s
    scores: Float64s


class Accumulator:
    """The curves of one category, a `CategoryMetric`: takes records in the order of `records.sort_order`."""

    def __init__(self, num_objects: Int64s, num_thresholds: int, max_dets: Sequence[int]) -> None:
        """Begin with no detections.

        Args:
            num_objects: [A] objects that count, over all images.
            num_thresholds: T, at most 16.
            max_dets: M limits; under each, only records of lower rank count.
        """
        self._num_objects = np.asarray(num_objects, np.int64)
        self._num_thresholds = num_thresholds
        needed = _counts_reaching(self._num_objects)
        self._curves = [(limit, _Curves(needed, num_thresholds)) for limit in max_dets]

    def update(self, records: Records) -> None:
        """Add records of `records.record_dtype` with A ranges, none of which belongs before an earlier one."""
        for start in range(0, len(records), _CHUNK):
            self._update(records[start : start + _CHUNK])

    def _update(self, records: Records) -> None:
        plain, event = _split(records, self._num_thresholds)
        scores, ranks = (np.ascontiguousarray(records[name]) for name in ("score", "rank"))
        true = _unpacked(records["tp"][event], self._num_thresholds)
        false = _unpacked(np.where(plain[event], np.uint16(0), records["fp"][event]), self._num_thresholds)
        for limit, curves in self._curves:
            counted = ranks < limit
            if not counted.any():
                continue
            num_plain = np.cumsum(plain.T & counted, axis=1, dtype=np.int64)
            within = np.flatnonzero(counted[event])
            chosen = event[within]
            curves.add_events(scores[chosen], true[..., within], false[..., within], num_plain[:, chosen])
            curves.close(float(scores[counted.argmax()]), num_plain[:, -1])

    def result(self) -> CategoryResult:
        """Of all records so far."""
        curves = [each for _, each in self._curves]
        reached = [each.num_true / np.maximum(self._num_objects, 1)[:, None] for each in curves]
        return CategoryResult(
            precision=self._stacked([each.envelope() for each in curves]),
            recall=self._stacked(reached),
            scores=self._stacked([each.scores for each in curves]),
        )

    def _stacked(self, by_limit: Sequence[Float64s]) -> Float64s:
        """M arrays [A, T, ...] -> [T, ..., A, M]."""
        values = np.moveaxis(np.stack(by_limit, axis=-1), 0, -2)
        values[..., self._num_objects == 0, :] = -1.0
        return values


class _Curves:
    """The A x T precision-recall curves under one limit of detections."""

    def __init__(self, needed: Int64s, num_thresholds: int) -> None:
        """Begin at the origin; ``needed`` [A, R] true positives reach each recall."""
        shape = (len(needed), num_thresholds)
        self._needed = np.broadcast_to(needed[:, None], (*shape, NUM_RECALLS))
        self._best = np.zeros((*shape, NUM_RECALLS))
        self._started = False
        self._num_false = np.zeros(shape, np.int64)
        self.num_true = np.zeros(shape, np.int64)
        self.scores = np.zeros((*shape, NUM_RECALLS))

    def add_events(self, scores: Float64s, true: Uint16s, false: Uint16s, num_plain: Int64s) -> None:
        """Go along the curves to the last of E events.

        Args:
            scores: [E] of the events, descending.
            true: [A, T, E] 1 where an event is a true positive.
            false: [A, T, E] 1 where it is a false one, and not at all thresholds.
            num_plain: [A, E] false positives at all thresholds since `close`, up to and with each event.
        """
        if not len(scores):
            return
        num_true = np.cumsum(true, axis=2, dtype=np.int64) + self.num_true[..., None]
        num_false = np.cumsum(false, axis=2, dtype=np.int64) + (self._num_false[..., None] + num_plain[:, None])
        # COCOeval's guard against 0 / 0. It also puts the precision of 1 of 1 just below 1, and of 2 of 2 at 1.
        precision = num_true / (num_false + num_true + np.spacing(1))
        firsts = self._first_events(num_true)
        stretches = np.diff(firsts.ravel(), append=precision.size) > 0
        highest = np.maximum.reduceat(precision.ravel(), firsts.ravel()[stretches])
        stretches = stretches.reshape(firsts.shape)
        self._best[stretches] = np.maximum(self._best[stretches], highest)
        newly = (self._needed > self.num_true[..., None]) & (self._needed <= num_true[..., -1:])
        self.scores[newly] = scores[firsts[newly] % len(scores)]
        self.num_true = num_true[..., -1].copy()  # a view would keep the whole array
        self._num_false += false.sum(axis=2, dtype=np.int64)

    def _first_events(self, num_true: Int64s) -> Int64s:
        """[A, T, R] where in the flattened [A, T, E] each recall is reached first; the next row if nowhere."""
        num_curves = self.num_true.size
        span = max(int(num_true.max()), int(self._needed.max())) + 1
        shift = np.arange(num_curves).reshape(*self.num_true.shape, 1) * span
        return np.searchsorted((num_true + shift).ravel(), self._needed + shift)

    def close(self, first_score: float, num_plain: Int64s) -> None:
        """Note the plain false positives [A] of a chunk, after its events; its first record reaches recall 0."""
        if not self._started:
            self.scores[..., 0] = first_score
            self._started = True
        self._num_false += num_plain[:, None]

    def envelope(self) -> Float64s:
        """[A, T, R] highest precision from each recall on; 0 where it is not reached."""
        return np.maximum.accumulate(self._best[..., ::-1], axis=2)[..., ::-1]


def _counts_reaching(num_objects: Int64s) -> Int64s:
    """[A, R] the fewest true positives whose quotient with the number of objects reaches each recall.

    The quotient in floating point decides, as in COCOeval: 0.07 x 100 is more than 7, and 7 / 100 is not less
    than 0.07.
    """
    objects = np.maximum(num_objects, 1)[:, None]
    counts = np.ceil(RECALL_THRESHOLDS * objects).astype(np.int64)
    counts -= (counts - 1) / objects >= RECALL_THRESHOLDS
    counts += counts / objects < RECALL_THRESHOLDS
    return counts


def _split(records: Records, num_thresholds: int) -> tuple[Bools, Int64s]:
    """False positives at every threshold [n, A], and the places of the events [E]."""
    plain = records["fp"] == (1 << num_thresholds) - 1
    partly = (records["fp"] != 0) & ~plain
    return plain, np.flatnonzero((partly | (records["tp"] != 0)).any(axis=1))


def _unpacked(bits: Uint16s, num_thresholds: int) -> Uint16s:
    """[n, A] -> [A, T, n] of 0 and 1."""
    return (bits.T[:, None] >> np.arange(num_thresholds, dtype=np.uint16)[:, None]) & np.uint16(1)
