"""What became of every detection and object of a block: right, which error, or ignored.

The rules are those of TIDE (Bolya, Foley, Hays, Hoffman: "TIDE: A General Toolbox for Identifying Object Detection
Errors", ECCV 2020) as its program tidecv 1.0.1 has them. On each image the best `MAX_DETECTIONS` are judged, in
descending score: a detection takes the free object of its category that it overlaps most, from an IoU of
`POSITIVE_IOU` on. One that takes none, but lies in a crowd region of its category, is ignored. Any other is an error,
the first of these that fits:

* localisation: `BACKGROUND_IOU` <= IoU <= `POSITIVE_IOU` with an object of its category;
* classification: IoU >= `POSITIVE_IOU` with an object of another category;
* duplicate: IoU > `POSITIVE_IOU` with an object of its category, which another detection has taken;
* background: no IoU above `BACKGROUND_IOU` with anything;
* both: the rest, wrong in category and in place.

An object is missed if no detection took it and no localisation or classification error is about it.

Legend: N images, D detections, G objects of the block.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from pipeline.metrics.blocks import DetectionBlock, TruthBlock
from pipeline.metrics.overlaps import (
    Overlaps,
    Partners,
    best_partners,
    match_in_order,
    score_positions,
)
from pipeline.tables.arrays import Bools, Int64s, Uint8s
from pipeline.tables.ragged import image_indices

POSITIVE_IOU = 0.5
BACKGROUND_IOU = 0.1
MAX_DETECTIONS = 100


class Outcome(IntEnum):
    """1 to 6 are the errors, in the order in which tidecv lists them."""

    TRUE_POSITIVE = 0
    CLASSIFICATION = 1
    LOCALISATION = 2
    BOTH = 3
    DUPLICATE = 4
    BACKGROUND = 5
    MISSED = 6
    IGNORED = 7  # it lies in a crowd region
    NOT_JUDGED = 8  # the image has enough better ones

    @property
    def label(self) -> str:
        """The name in tables and reports."""
        return self.name.lower()


ERRORS = tuple(Outcome)[Outcome.CLASSIFICATION : Outcome.MISSED + 1]


@dataclass(frozen=True)
class Judgement:
    """Every detection's and object's fate.

    Attributes:
        outcomes: [D] uint8 the `Outcome` of each detection.
        partners: [D] the object that a detection took or that its error is about, else the one that it overlaps
            most; for ignored ones the crowd region, and the share of the detection that lies in it.
        mistakes: [D] uint8 the error that a detection would be if crowd regions did not count; 0 if none.
        fixes: [D] for the best scored of the localisation and classification errors about one untaken object, that
            object: mended, the detection would be right. -1 for all others, which TIDE mends by taking them away.
        taken: [G] the objects with a true positive.
        missed: [G] the objects that no detection took and no localisation or classification error is about.
    """

    outcomes: Uint8s
    partners: Partners
    mistakes: Uint8s
    fixes: Int64s
    taken: Bools
    missed: Bools


def judge(truth: TruthBlock, detections: DetectionBlock, overlaps: Overlaps) -> Judgement:
    """Apply the rules above.

    Args:
        truth: objects of N images.
        detections: on the same images.
        overlaps: all of the block, as `block_overlaps` gives them.
    """
    places = score_positions(detections)
    judged = places - detections.offsets[image_indices(detections.offsets)] < MAX_DETECTIONS
    matched, own, other, region = _partners(truth, detections, overlaps.take(judged[overlaps.detections]), places)
    mistakes = _mistakes(matched, own, other)
    mistakes[~judged] = 0
    ignored = judged & ~matched.present & (region.ious > POSITIVE_IOU)
    special = [~judged, ignored]
    outcomes = np.select(special, [Outcome.NOT_JUDGED, Outcome.IGNORED], mistakes).astype(np.uint8)
    misplaced = mistakes == Outcome.LOCALISATION
    misnamed = mistakes == Outcome.CLASSIFICATION
    about = _either(misnamed | (~misplaced & (other.ious > own.ious)), other, own)
    taken = np.zeros(len(truth.crowd), np.bool_)
    taken[matched.objects[matched.present]] = True
    fixes, covered = _fixes(np.where(misplaced | misnamed, about.objects, -1), places, taken)
    return Judgement(
        outcomes=outcomes,
        partners=_either(matched.present, matched, _either(ignored, region, about)),
        mistakes=mistakes,
        fixes=fixes,
        taken=taken,
        missed=~(truth.crowd | taken | covered),
    )


def _partners(
    truth: TruthBlock, detections: DetectionBlock, overlaps: Overlaps, places: Int64s
) -> tuple[Partners, ...]:
    """What each detection matches, and what it overlaps most: own category, other categories, own crowd regions."""
    crowd = truth.crowd[overlaps.objects]
    same = truth.categories[overlaps.objects] == detections.categories[overlaps.detections]
    matched = _matched(overlaps.take(same & ~crowd & (overlaps.ious >= POSITIVE_IOU)), places, len(truth.crowd))
    kinds = (same & ~crowd, ~same & ~crowd, same & crowd)
    return matched, *(best_partners(overlaps.take(kind), len(places)) for kind in kinds)


def _matched(candidates: Overlaps, places: Int64s, num_objects: int) -> Partners:
    """In descending score, each detection the free object of the highest IoU, the first of equals."""
    order = np.lexsort((candidates.objects, -candidates.ious, places[candidates.detections]))
    return match_in_order(candidates.take(order), len(places), num_objects)


def _mistakes(matched: Partners, own: Partners, other: Partners) -> Uint8s:
    """The first error that fits, by the highest IoU with objects of the own category and of all others."""
    cases = {
        Outcome.TRUE_POSITIVE: matched.present,
        Outcome.LOCALISATION: (own.ious >= BACKGROUND_IOU) & (own.ious <= POSITIVE_IOU),
        Outcome.CLASSIFICATION: other.ious >= POSITIVE_IOU,
        Outcome.DUPLICATE: own.ious > POSITIVE_IOU,
        Outcome.BACKGROUND: np.maximum(own.ious, other.ious) <= BACKGROUND_IOU,
    }
    return np.select(list(cases.values()), list(cases), Outcome.BOTH).astype(np.uint8)


def _either(first: Bools, one: Partners, other: Partners) -> Partners:
    return Partners(np.where(first, one.objects, other.objects), np.where(first, one.ious, other.ious))


def _fixes(about: Int64s, places: Int64s, taken: Bools) -> tuple[Int64s, Bools]:
    """The objects for `Judgement.fixes` [D], and which objects an error is about [G].

    Args:
        about: [D] the object that mending the error would match, -1 for none.
        places: [D] ascending from the best score on.
        taken: [G] the objects with a true positive.
    """
    candidates = np.flatnonzero(about >= 0)
    candidates = candidates[~taken[about[candidates]]]
    first = np.full(taken.size, about.size, np.int64)
    np.minimum.at(first, about[candidates], places[candidates])
    best = candidates[places[candidates] == first[about[candidates]]]
    fixes = np.full(about.size, -1, np.int64)
    fixes[best] = about[best]
    return fixes, first < about.size
