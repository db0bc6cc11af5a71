"""Which detections count as true and which as false: COCOeval's greedy matching, for a whole block at once.

Legend: P pairs of a detection and an object of one image and category; D detections; G objects; A area ranges;
T IoU thresholds.

Detections choose in the order of their ranks, and a choice depends on earlier ones in the same (image, category)
only. So all detections of one rank choose at once, for all ranges and thresholds: as many rounds as the longest
cell has detections, whatever the number of images.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from pipeline.metrics.overlaps import Overlaps
from pipeline.metrics.protocol import IOU_THRESHOLDS
from pipeline.tables.arrays import Bools, Int64s, Uint16s

# pycocotools caps a threshold at 1 - 1e-10; the highest, 0.95, is below that.
NUM_THRESHOLDS = len(IOU_THRESHOLDS)
THRESHOLD_BITS: Uint16s = (1 << np.arange(NUM_THRESHOLDS)).astype(np.uint16)
ALL_THRESHOLDS = np.uint16((1 << NUM_THRESHOLDS) - 1)


@dataclass(frozen=True)
class MatchTargets:
    """What matching asks of the G objects.

    Attributes:
        ignored: [G, A] crowd, or its annotated area outside the range.
        crowd: [G] may match many detections.
        countable: [G] id is not 0. COCOeval keeps the id of the match and takes 0 for none: such an object is
            taken by the detection that chooses it, and the detection still counts as unmatched.
    """

    ignored: Bools
    crowd: Bools
    countable: Bools


def match(pairs: Overlaps, objects: MatchTargets, ranks: Int64s, outside: Bools) -> tuple[Uint16s, Uint16s]:
    """True and false positives, bit t for threshold t; neither where a detection is ignored.

    A detection takes the object of highest IoU that is still free, the last of equals, and an ignored object
    only if no other will do. It is ignored if its object is, or if it has none and lies outside the range.

    Args:
        pairs: P that can match at all, in any order: IoU at or above the lowest threshold, same category.
        objects: all G of the block.
        ranks: [D] place of each detection among those of its image and category, best score first.
        outside: [D, A] the detection's own area is outside the range.

    Returns:
        tp and fp, both [D, A].
    """
    tp = np.zeros(outside.shape, np.uint16)
    fp = np.where(outside, np.uint16(0), ALL_THRESHOLDS)
    pair_ranks = ranks[pairs.detections]
    order = np.lexsort((pairs.objects, pairs.ious, pairs.detections, pair_ranks))
    detections, chosen_from, ious = pairs.detections[order], pairs.objects[order], pairs.ious[order]
    reached = ious[:, None, None] >= IOU_THRESHOLDS
    free = np.ones((*objects.ignored.shape, NUM_THRESHOLDS), np.bool_)
    rounds = np.flatnonzero(np.diff(pair_ranks[order], prepend=-1)).tolist()
    for start, stop in pairwise([*rounds, len(order)]):
        part = slice(start, stop)
        starts = np.flatnonzero(np.diff(detections[part], prepend=-1))
        hit, taken = _choose(reached[part], chosen_from[part], starts, objects, free)
        _, ranges, thresholds = np.nonzero(hit)
        free[taken[hit], ranges, thresholds] = False
        choosing = detections[part][starts]
        ignored = hit & objects.ignored[taken, np.arange(taken.shape[1])[:, None]]
        matched = hit & objects.countable[taken]
        ignored |= ~matched & outside[choosing][:, :, None]
        tp[choosing] = (matched & ~ignored) @ THRESHOLD_BITS
        fp[choosing] = (~matched & ~ignored) @ THRESHOLD_BITS
    return tp, fp


def _choose(
    reached: Bools, candidates: Int64s, starts: Int64s, objects: MatchTargets, free: Bools
) -> tuple[Bools, Int64s]:
    """One round.

    Args:
        reached: [P, 1, T] the thresholds that each pair passes; the pairs of a detection side by side, worst first.
        candidates: [P] the object of each pair.
        starts: [D] the first pair of each detection.
        objects: all G of the block.
        free: [G, A, T] not taken in an earlier round.

    Returns:
        Whether each detection takes an object, and which, both [D, A, T]; any object where it takes none.
    """
    available = reached & (free[candidates] | objects.crowd[candidates, None, None])
    # The largest key wins: the pair's place plus one, and above all whether its object counts in the range.
    place = np.arange(1, len(candidates) + 1, dtype=np.int32)[:, None]
    bonus = np.int32(1 << len(candidates).bit_length())
    key = place + bonus * ~objects.ignored[candidates]
    best = np.maximum.reduceat(key[:, :, None] * available, starts, axis=0)
    return best > 0, candidates[(best & (bonus - 1)) - 1]
