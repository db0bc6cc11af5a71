"""One block of images -> a compact record per detection: all that precision and recall are computed from.

Legend: N images; D detections; G objects; K categories; A area ranges.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.metrics.ap.matching import MatchTargets, match
from pipeline.metrics.blocks import DetectionBlock, TruthBlock
from pipeline.metrics.overlaps import Overlaps
from pipeline.metrics.protocol import AREA_NAMES, AREA_RANGES, IOU_THRESHOLDS, CocoProtocol, IouType
from pipeline.tables.arrays import Bools, Float64s, Int64s
from pipeline.tables.ragged import image_indices

Records = NDArray[Any]


def record_dtype(num_ranges: int) -> np.dtype[Any]:
    """The packed record of one detection.

    ``score``; ``image``, the image's place in the order of ids; ``rank``, the detection's place among those of
    its image and category, best score first; ``tp`` and ``fp``, per range one bit for each IoU threshold.
    """
    bits = ("<u2", (num_ranges,))
    return np.dtype([("score", "<f8"), ("image", "<i8"), ("rank", "<u2"), ("tp", *bits), ("fp", *bits)])


RECORD = record_dtype(len(AREA_NAMES))

HIT_IOU = 0.5  # the first of the IoU thresholds: bit 0


@dataclass(frozen=True)
class BlockRecords:
    """What a block contributes to curves of precision and recall; blocks add up.

    Attributes:
        categories: [n] of the records.
        records: [n] `record_dtype` with A ranges.
        num_objects: [K, A] objects that count in each range.
    """

    categories: Int64s
    records: Records
    num_objects: Int64s


def block_records(
    truth: TruthBlock,
    detections: DetectionBlock,
    overlaps: Overlaps,
    iou_type: IouType,
    num_categories: int,
    protocol: CocoProtocol,
) -> BlockRecords:
    """Match a block's detections and cut each (image, category) at the highest of ``max_dets``.

    Detections of equal score keep the order in which they were given. Their area is that of the mask or, where
    boxes are compared, of the box; an object's area is the annotated one.

    Args:
        truth: objects of N images.
        detections: detections on the same images.
        overlaps: of detections and objects of one category; others may be among them.
        iou_type: what is compared; its area counts.
        num_categories: K, of the ground truth.
        protocol: how many detections count.

    Returns:
        `RECORD` for the detections within the limits, by image, category and rank. Objects count unless they are
        crowd regions or their area is outside the range.

    Raises:
        ValueError: masks are compared and the detections have none.
    """
    image_of = image_indices(detections.offsets)
    order, ranks = _ranked(image_of, detections)
    kept = order[ranks[order] < protocol.max_dets[-1]]
    ignored = truth.crowd[:, None] | _outside(truth.areas)
    outside = _outside(_detected_areas(detections, iou_type))
    pairs = _candidates(truth, detections, overlaps, ranks < protocol.max_dets[-1])
    tp, fp = match(pairs, MatchTargets(ignored, truth.crowd, truth.ids != 0), ranks, outside)
    records = np.empty(len(kept), RECORD)
    records["score"] = detections.scores[kept] + 0.0  # -0.0 becomes 0.0: equal scores have equal bytes
    records["image"] = truth.orders[image_of[kept]]
    records["rank"] = ranks[kept]
    records["tp"], records["fp"] = tp[kept], fp[kept]
    counts = [np.bincount(truth.categories[~column], minlength=num_categories) for column in ignored.T]
    return BlockRecords(detections.categories[kept], records, np.stack(counts, axis=1))


def sort_order(records: Records) -> Int64s:
    """The order in which pycocotools goes through one category's detections: descending score, image, rank."""
    return np.lexsort((records["rank"], records["image"], -records["score"]))


def scored_hits(records: Records) -> tuple[Float64s, Bools]:
    """Scores [n] and whether each is a true positive at `HIT_IOU` [n], for objects of any size.

    Detections that COCO ignores, those in crowd regions, are left out.
    """
    true, false = (records[name][:, 0] & 1 for name in ("tp", "fp"))
    counted = (true | false) > 0
    return np.ascontiguousarray(records["score"][counted]), true[counted] > 0


def _ranked(image_of: Int64s, detections: DetectionBlock) -> tuple[Int64s, Int64s]:
    """Detections by image, category and descending score [D], and the rank of each within its cell [D]."""
    cells = image_of * (1 + detections.categories.max(initial=0)) + detections.categories
    order = np.lexsort((-detections.scores, cells))
    starts = np.flatnonzero(np.diff(cells[order], prepend=-1))
    place = np.arange(len(order))
    ranks = np.empty_like(place)
    ranks[order] = place - np.repeat(starts, np.diff(starts, append=len(order)))
    return order, ranks


def _detected_areas(detections: DetectionBlock, iou_type: IouType) -> Float64s:
    if iou_type == "bbox":
        return detections.boxes[:, 2] * detections.boxes[:, 3]
    if detections.rles is None:
        raise ValueError("masks are compared, and the detections have none")
    return detections.rles.areas.astype(np.float64)


def _outside(areas: Float64s) -> Bools:
    """[n, A]; both ends belong to a range."""
    return (areas[:, None] < AREA_RANGES[:, 0]) | (areas[:, None] > AREA_RANGES[:, 1])


def _candidates(truth: TruthBlock, detections: DetectionBlock, overlaps: Overlaps, kept: Bools) -> Overlaps:
    """The pairs of a kept detection and an object of its category that pass the lowest threshold."""
    passing = overlaps.take(overlaps.ious >= IOU_THRESHOLDS[0])
    same = detections.categories[passing.detections] == truth.categories[passing.objects]
    return passing.take(kept[passing.detections] & same)
