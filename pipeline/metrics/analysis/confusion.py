"""Which categories are taken for which: the confusion matrix of detection.

Detections from a score on are matched to objects of any category, highest IoU first, one to one, from an IoU of
`MATCH_IOU` on. That is how ultralytics and supervision do it, so that a matrix can be laid beside theirs: every
object is in exactly one cell of its row, every detection in exactly one of its column. (They do not give a detection
whose best object is taken a second choice; here it gets one.) mmdet's script enters each overlapping pair instead,
and its rows add up to more than the objects.

Crowd regions are no objects; detections that match nothing and lie in one of their own category are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.metrics.metric import ComparedBlock
from pipeline.metrics.overlaps import Overlaps, Partners, match_in_order
from pipeline.tables.arrays import Bools, Float64s, Int64s

MATCH_IOU = 0.5


@dataclass(frozen=True)
class Confusion:
    """The matrix and what it was counted with.

    Attributes:
        matrix: [K + 1, K + 1]; the row is the object's category, the column the detection's. The last row holds
            detections of nothing, the last column objects that were not detected.
        score_threshold: lower scores were left out.
    """

    matrix: Int64s
    score_threshold: float

    def to_json(self, names: Sequence[str]) -> dict[str, Any]:
        """The section of metrics.json."""
        return {
            "score_threshold": self.score_threshold,
            "iou_threshold": MATCH_IOU,
            "labels": [*names, "background"],
            "matrix": self.matrix.tolist(),
        }


class ConfusionMatrix:
    """Counts it; a `Metric`."""

    def __init__(self, num_categories: int, score_threshold: float) -> None:
        self._matrix = np.zeros((num_categories + 1, num_categories + 1), np.int64)
        self._score_threshold = score_threshold

    def update(self, block: ComparedBlock) -> None:
        """Count a block."""
        self._matrix += _block_matrix(block, self._score_threshold)

    def merge(self, other: ConfusionMatrix) -> None:
        """Add what another has counted."""
        self._matrix += other._matrix

    def result(self) -> Confusion:
        """Of all blocks."""
        return Confusion(self._matrix.copy(), self._score_threshold)


def _block_matrix(block: ComparedBlock, score_threshold: float) -> Int64s:
    """[K + 1, K + 1]."""
    truth, detections, overlaps = block.truth, block.detections, block.overlaps
    kept = detections.scores >= score_threshold
    overlaps = overlaps.take(kept[overlaps.detections] & (overlaps.ious >= MATCH_IOU))
    same = truth.categories[overlaps.objects] == detections.categories[overlaps.detections]
    crowd = truth.crowd[overlaps.objects]
    matched = _matched(overlaps.take(~crowd), same[~crowd], detections.scores, len(truth.crowd))
    in_crowd = np.zeros(len(kept), np.bool_)
    in_crowd[overlaps.detections[same & crowd]] = True
    false = kept & ~matched.present & ~in_crowd
    return _counts(block, matched, false)


def _matched(candidates: Overlaps, same: Bools, scores: Float64s, num_objects: int) -> Partners:
    """Of equal IoUs the better score goes first, then the right category: some models give one box several."""
    keys = (
        candidates.objects,
        candidates.detections,
        ~same,
        -scores[candidates.detections],
        -candidates.ious,
    )
    return match_in_order(candidates.take(np.lexsort(keys)), len(scores), num_objects)


def _counts(block: ComparedBlock, matched: Partners, false: Bools) -> Int64s:
    truth, detections, background = block.truth, block.detections, block.num_categories
    missed = ~truth.crowd
    missed[matched.objects[matched.present]] = False
    rows = [
        truth.categories[matched.objects[matched.present]],
        np.full(false.sum(), background),
        truth.categories[missed],
    ]
    columns = [detections.categories[matched.present], detections.categories[false], np.full(missed.sum(), background)]
    side = block.num_categories + 1
    cells = np.concatenate(rows) * side + np.concatenate(columns)
    return np.bincount(cells, minlength=side * side).reshape(side, side)
