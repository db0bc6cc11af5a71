"""How much AP each kind of error costs: TIDE (Bolya et al., ECCV 2020), from records that are sorted like those of AP.

The errors are those of `pipeline.metrics.analysis.outcomes`. The price of one is the AP at an IoU of 0.5 once it is
mended, minus the AP as it is; false positives are mended by taking all of them away, false negatives by not asking
for the objects without a true positive. Every record says for each of these variants whether its detection is a true
or a false positive there, so that one sorted pass per category gives all curves.

The numbers are tidecv 1.0.1's, divided by 100, but for two details:

* recalls are compared with ``linspace(0, 1, 101)`` as in COCO, not with ``n / 100``; where a recall is exactly a
  hundredth, one of the 101 precisions may be that of the next detection;
* equal scores are ordered by image and rank in every variant; tidecv puts wrong detections before right ones as soon
  as anything is mended.

As in tidecv, a category without objects has an AP of 0 if anything was detected in it, and does not count otherwise.

The numbers of errors are read off the same records: an error is a false positive as things are, and none in the variant
that mends it.

Legend: D detections, G objects of a block; K categories; V variants; E errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.metrics.analysis.outcomes import (
    BACKGROUND_IOU,
    ERRORS,
    MAX_DETECTIONS,
    POSITIVE_IOU,
    Judgement,
    Outcome,
)
from pipeline.metrics.ap.accumulate import Accumulator
from pipeline.metrics.ap.records import BlockRecords, Records, record_dtype
from pipeline.metrics.blocks import DetectionBlock, TruthBlock
from pipeline.metrics.metric import ComparedBlock
from pipeline.metrics.overlaps import score_positions
from pipeline.tables.arrays import Bools, Float64s, Int64s
from pipeline.tables.ragged import image_indices

# Variants: as it is, then each error mended at the index of its outcome, then these two.
AS_IS = 0
NO_FALSE_POSITIVES = len(ERRORS) + 1
NO_FALSE_NEGATIVES = len(ERRORS) + 2
NUM_VARIANTS = len(ERRORS) + 3

VARIANT_RECORD = record_dtype(NUM_VARIANTS)

# The errors of detections; each is the index of the variant that mends it.
_OF_DETECTIONS = list(ERRORS[:-1])


@dataclass(frozen=True)
class CategoryErrors:
    """The errors of one category.

    Attributes:
        aps: [V] at an IoU of 0.5; of no meaning without objects.
        num_objects: [V] to be found, crowd regions left out.
        num_detections: [V] detections that count.
        counts: [E] errors; a missed object under its own category, the others under the detection's.
    """

    aps: Float64s
    num_objects: Int64s
    num_detections: Int64s
    counts: Int64s


class ErrorTracker:
    """Adds up the errors of one category, a `CategoryMetric` of `VARIANT_RECORD`."""

    def __init__(self, num_objects: Int64s) -> None:
        """Begin with no detections.

        Args:
            num_objects: [V] of `error_records`, over all blocks.
        """
        self._num_objects = num_objects
        self._accumulator = Accumulator(num_objects, 1, (MAX_DETECTIONS,))
        self._num_detections = np.zeros(NUM_VARIANTS, np.int64)
        self._num_errors = np.zeros(len(_OF_DETECTIONS), np.int64)

    def update(self, records: Records) -> None:
        """Add records of `error_records`."""
        self._accumulator.update(records)
        true, false = records["tp"] > 0, records["fp"] > 0
        self._num_detections += (true | false).sum(axis=0)
        self._num_errors += (false[:, [AS_IS]] & ~false[:, _OF_DETECTIONS]).sum(axis=0)

    def result(self) -> CategoryErrors:
        """Of all records so far."""
        precision = self._accumulator.result().precision[0, :, :, 0]
        num_detections = self._num_detections.copy()
        # tidecv keeps false positives as detections with a score of 0.
        num_detections[NO_FALSE_POSITIVES] = num_detections[AS_IS]
        missed = self._num_objects[AS_IS] - self._num_objects[Outcome.MISSED]
        return CategoryErrors(
            aps=np.array([precision[:, variant].mean() for variant in range(NUM_VARIANTS)]),
            num_objects=self._num_objects,
            num_detections=num_detections,
            counts=np.append(self._num_errors, missed),
        )


@dataclass(frozen=True)
class ErrorSummary:
    """What the errors cost; 0 to 1, ``None`` where there is neither an object nor a detection.

    Attributes:
        ap: mean over the categories of the AP at an IoU of 0.5, with at most `MAX_DETECTIONS` on an image.
        gains: by the error's label, the AP won by mending all errors of that kind; as in tidecv never below 0.
            ``None`` also where mending leaves no category with an object or a detection.
        gain_false_positives: by taking every false positive away.
        gain_false_negatives: by asking only for the objects that were found.
        counts: errors by label. Detections in crowd regions are none here; tidecv counts those, too.
        category_counts: the same for each of K categories.
    """

    ap: float | None
    gains: dict[str, float | None]
    gain_false_positives: float | None
    gain_false_negatives: float | None
    counts: dict[str, int]
    category_counts: tuple[dict[str, int], ...]

    def to_json(self, names: Sequence[str]) -> dict[str, Any]:
        """The section of metrics.json."""
        return {
            "iou_threshold": POSITIVE_IOU,
            "background_threshold": BACKGROUND_IOU,
            "AP": self.ap,
            "dAP": self.gains,
            "dAP_false_positives": self.gain_false_positives,
            "dAP_false_negatives": self.gain_false_negatives,
            "counts": self.counts,
            "per_class": [
                {"name": name, "counts": counts} for name, counts in zip(names, self.category_counts, strict=True)
            ],
        }


def error_records(block: ComparedBlock) -> BlockRecords:
    """Judge a block.

    Returns:
        `VARIANT_RECORD`, its "ranges" being the variants, with one IoU threshold (bit 0).
    """
    categories, records = _records(block.truth, block.detections, block.judgement)
    return BlockRecords(categories, records, _num_objects(block.truth, block.judgement, block.num_categories))


def error_summary(categories: Sequence[CategoryErrors]) -> ErrorSummary:
    """AP and its price list, of K categories."""
    aps = [_mean_ap(categories, variant) for variant in range(NUM_VARIANTS)]
    as_is = aps[AS_IS]
    gains = [None if ap is None or as_is is None else ap - as_is for ap in aps]
    by_error = gains[1 : len(ERRORS) + 1]
    return ErrorSummary(
        ap=as_is,
        gains={e.label: None if g is None else max(g, 0.0) for e, g in zip(ERRORS, by_error, strict=True)},
        gain_false_positives=gains[NO_FALSE_POSITIVES],
        gain_false_negatives=gains[NO_FALSE_NEGATIVES],
        counts=_by_label(np.sum([each.counts for each in categories], axis=0)),
        category_counts=tuple(_by_label(each.counts) for each in categories),
    )


def _by_label(counts: Int64s) -> dict[str, int]:
    return {error.label: number for error, number in zip(ERRORS, counts.tolist(), strict=True)}


def _mean_ap(categories: Sequence[CategoryErrors], variant: int) -> float | None:
    """Mean over the categories with objects or detections; None where there is none."""
    aps = []
    for each in categories:
        if each.num_objects[variant] > 0:
            aps.append(float(each.aps[variant]))
        elif each.num_detections[variant] > 0:
            aps.append(0.0)
    return sum(aps) / len(aps) if aps else None


def _records(truth: TruthBlock, detections: DetectionBlock, judgement: Judgement) -> tuple[Int64s, Records]:
    """What the detections count as in each variant.

    A detection with a mended category gets a second record there, which counts in that variant only.
    """
    outcomes, mistakes = judgement.outcomes, judgement.mistakes
    records = _blank_records(truth, detections)
    moved = np.flatnonzero((judgement.fixes >= 0) & (mistakes == Outcome.CLASSIFICATION))
    moved_records = records[moved]
    moved_records["tp"][:, Outcome.CLASSIFICATION] = 1

    records["tp"][outcomes == Outcome.TRUE_POSITIVE] = 1
    wrong = np.flatnonzero((outcomes >= Outcome.CLASSIFICATION) & (outcomes <= Outcome.BACKGROUND))
    records["fp"][wrong] = 1
    records["fp"][wrong, outcomes[wrong]] = 0
    records["fp"][wrong, NO_FALSE_POSITIVES] = 0
    mended = (judgement.fixes >= 0) & (mistakes == Outcome.LOCALISATION)
    records["tp"][mended, Outcome.LOCALISATION] = 1

    kept = np.flatnonzero((outcomes <= Outcome.BACKGROUND) | mended)
    categories = np.concatenate([detections.categories[kept], truth.categories[judgement.fixes[moved]]])
    return categories, np.concatenate([records[kept], moved_records])


def _blank_records(truth: TruthBlock, detections: DetectionBlock) -> Records:
    """[D] with what decides the order, and no marks."""
    images = image_indices(detections.offsets)
    records = np.zeros(len(detections.scores), VARIANT_RECORD)
    records["score"] = detections.scores + 0.0  # no -0.0, as in the records of AP
    records["image"] = truth.orders[images]
    # From MAX_DETECTIONS on nothing is judged and no record kept: those ranks only have to fit the field.
    records["rank"] = np.minimum(score_positions(detections) - detections.offsets[images], MAX_DETECTIONS)
    return records


def _num_objects(truth: TruthBlock, judgement: Judgement, num_categories: int) -> Int64s:
    def per_category(objects: Bools) -> Int64s:
        return np.bincount(truth.categories[objects], minlength=num_categories)

    asked = per_category(~truth.crowd)
    counts = np.repeat(asked[:, None], NUM_VARIANTS, axis=1)
    counts[:, Outcome.MISSED] -= per_category(judgement.missed)
    counts[:, NO_FALSE_NEGATIVES] = per_category(judgement.taken)
    return counts
