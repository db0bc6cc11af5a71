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

import numpy as np

from pipeline.metrics.blocks import DetectionBlock, TruthBlock
from pipeline.metrics.overlaps import Overlaps, Partners, block_overlaps, match_in_order
from pipeline.tables.arrays import Bools, Float64s, Int64s

MATCH_IOU = 0.5


def block_confusion(
    truth: TruthBlock, detections: DetectionBlock, ious: Sequence[Float64s], num_categories: int, score_threshold: float
) -> Int64s:
    """Count one block; the matrices of blocks add up to that of the set.

    Args:
        truth: N images.
        detections: the same images.
        ious: N matrices [D_i, G_i] of every pair, of different categories too.
        num_categories: K.
        score_threshold: lower scores are left out.

    Returns:
        [K + 1, K + 1]; the row is the object's category, the column the detection's. The last row holds detections
        of nothing, the last column objects that were not detected.
    """
    overlaps = block_overlaps(truth, detections, ious)
    kept = detections.scores >= score_threshold
    overlaps = overlaps.take(kept[overlaps.detections] & (overlaps.ious >= MATCH_IOU))
    same = truth.categories[overlaps.objects] == detections.categories[overlaps.detections]
    crowd = truth.crowd[overlaps.objects]
    matched = _matched(overlaps.take(~crowd), same[~crowd], detections.scores, len(truth.crowd))
    in_crowd = np.zeros(len(kept), np.bool_)
    in_crowd[overlaps.detections[same & crowd]] = True
    false = kept & ~matched.present & ~in_crowd
    return _counts(truth, detections, matched, false, num_categories)


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


def _counts(
    truth: TruthBlock, detections: DetectionBlock, matched: Partners, false: Bools, num_categories: int
) -> Int64s:
    background = num_categories
    missed = ~truth.crowd
    missed[matched.objects[matched.present]] = False
    rows = [
        truth.categories[matched.objects[matched.present]],
        np.full(false.sum(), background),
        truth.categories[missed],
    ]
    columns = [detections.categories[matched.present], detections.categories[false], np.full(missed.sum(), background)]
    side = num_categories + 1
    cells = np.concatenate(rows) * side + np.concatenate(columns)
    return np.bincount(cells, minlength=side * side).reshape(side, side)
