"""How much AP each kind of error costs: TIDE (Bolya et al., ECCV 2020), from records that stream like those of AP.

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

Legend: D detections, G objects of a block; K categories; V variants; E errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.metrics.analysis.outcomes import ERRORS, MAX_DETECTIONS, Judgement, Outcome, judge
from pipeline.metrics.ap.accumulate import CategoryResult
from pipeline.metrics.ap.records import Records, record_dtype
from pipeline.metrics.blocks import DetectionBlock, TruthBlock
from pipeline.metrics.overlaps import block_overlaps, score_positions
from pipeline.tables.arrays import Bools, Float64s, Int64s
from pipeline.tables.ragged import image_indices

__all__ = [
    "MAX_DETECTIONS",
    "NUM_VARIANTS",
    "BlockErrors",
    "ErrorSummary",
    "ErrorTotals",
    "block_errors",
    "error_summary",
]

# Variants: as it is, then each error mended at the index of its outcome, then these two.
AS_IS = 0
NO_FALSE_POSITIVES = len(ERRORS) + 1
NO_FALSE_NEGATIVES = len(ERRORS) + 2
NUM_VARIANTS = len(ERRORS) + 3

VARIANT_RECORD = record_dtype(NUM_VARIANTS)


@dataclass(frozen=True)
class ErrorTotals:
    """What is summed over blocks.

    Attributes:
        num_objects: [K, V] objects to be found, crowd regions left out.
        num_detections: [K, V] detections that count.
        counts: [K, E] errors; a missed object under its own category, the others under the detection's.
    """

    num_objects: Int64s
    num_detections: Int64s
    counts: Int64s

    def __add__(self, other: ErrorTotals) -> ErrorTotals:
        return ErrorTotals(
            self.num_objects + other.num_objects,
            self.num_detections + other.num_detections,
            self.counts + other.counts,
        )


@dataclass(frozen=True)
class BlockErrors:
    """The errors of a block.

    Attributes:
        categories: [n] of the records.
        records: [n] `VARIANT_RECORD`, its "ranges" being the variants, with one IoU threshold (bit 0).
        totals: for the whole set, once they are added up over its blocks.
        judgement: of every detection and object.
    """

    categories: Int64s
    records: Records
    totals: ErrorTotals
    judgement: Judgement


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
    """

    ap: float | None
    gains: dict[str, float | None]
    gain_false_positives: float | None
    gain_false_negatives: float | None
    counts: dict[str, int]


def block_errors(
    truth: TruthBlock, detections: DetectionBlock, ious: Sequence[Float64s], num_categories: int
) -> BlockErrors:
    """Judge a block.

    Args:
        truth: N images.
        detections: the same images.
        ious: N matrices [D_i, G_i] of every pair, of different categories too.
        num_categories: K.
    """
    judgement = judge(truth, detections, block_overlaps(truth, detections, ious))
    categories, records = _records(truth, detections, judgement)
    totals = ErrorTotals(
        num_objects=_num_objects(truth, judgement, num_categories),
        num_detections=_num_detections(categories, records, num_categories),
        counts=_counts(truth, detections, judgement, num_categories),
    )
    return BlockErrors(categories, records, totals, judgement)


def error_summary(results: Sequence[CategoryResult], totals: ErrorTotals) -> ErrorSummary:
    """AP and its price list.

    Args:
        results: K, of accumulators over `VARIANT_RECORD` with ``totals.num_objects[k]``, one IoU threshold and
            ``(MAX_DETECTIONS,)``.
        totals: of all blocks.
    """
    aps = [_mean_ap(results, totals, variant) for variant in range(NUM_VARIANTS)]
    as_is = aps[AS_IS]
    gains = [None if ap is None or as_is is None else ap - as_is for ap in aps]
    by_error = gains[1 : len(ERRORS) + 1]
    return ErrorSummary(
        ap=as_is,
        gains={e.label: None if g is None else max(g, 0.0) for e, g in zip(ERRORS, by_error, strict=True)},
        gain_false_positives=gains[NO_FALSE_POSITIVES],
        gain_false_negatives=gains[NO_FALSE_NEGATIVES],
        counts={error.label: int(n) for error, n in zip(ERRORS, totals.counts.sum(axis=0), strict=True)},
    )


def _mean_ap(results: Sequence[CategoryResult], totals: ErrorTotals, variant: int) -> float | None:
    """Mean over the categories with objects or detections; None where there is none."""
    aps = []
    for category, result in enumerate(results):
        if totals.num_objects[category, variant] > 0:
            aps.append(float(result.precision[0, :, variant, 0].mean()))
        elif totals.num_detections[category, variant] > 0:
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


def _num_detections(categories: Int64s, records: Records, num_categories: int) -> Int64s:
    marks = records["tp"] | records["fp"]
    counts = np.stack([np.bincount(categories[marks[:, v] > 0], minlength=num_categories) for v in range(NUM_VARIANTS)])
    # tidecv keeps false positives as detections with a score of 0.
    counts[NO_FALSE_POSITIVES] = counts[AS_IS]
    return counts.T


def _counts(truth: TruthBlock, detections: DetectionBlock, judgement: Judgement, num_categories: int) -> Int64s:
    categories = np.concatenate([detections.categories, truth.categories[judgement.missed]])
    missed = np.full(len(categories) - len(detections.categories), Outcome.MISSED, np.uint8)
    outcomes = np.concatenate([judgement.outcomes, missed])
    stride = len(Outcome)
    table = np.bincount(categories * stride + outcomes, minlength=num_categories * stride)
    return table.reshape(num_categories, stride)[:, ERRORS[0] : ERRORS[-1] + 1]
