"""What overlaps what in a block, and by how much: pycocotools' own C code, asked only about what may overlap.

Legend: D detections and G objects of a block; C cells; P pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pycocotools import mask as coco_mask

from pipeline.coco.errors import InputError
from pipeline.masks.rle import Rle, RleColumn
from pipeline.metrics.blocks import DetectionBlock, TruthBlock
from pipeline.metrics.overlaps import Overlaps
from pipeline.metrics.protocol import IOU_THRESHOLDS, IouType
from pipeline.tables.arrays import Bools, Float64s, Int64s
from pipeline.tables.ragged import image_indices, offsets_of, owners_of


def block_overlaps(truth: TruthBlock, detections: DetectionBlock, iou_type: IouType, only_candidates: bool) -> Overlaps:
    """Intersection over union; for crowds intersection over the detection's own area, as COCO defines it.

    Args:
        truth: objects of N images.
        detections: detections on the same images.
        iou_type: compare boxes or masks.
        only_candidates: leave out what cannot match in AP: pairs of different categories, and those below the lowest
            threshold, most of which need not be decoded.

    Returns:
        Every other pair with an IoU above 0, by detection, then by object.

    Raises:
        ValueError: masks are wanted and a block has none, or a mask's size is not its image's. pycocotools would
            call the IoU of such a pair -1, and the AP would silently be 0.
    """
    cells = _Cells.of(truth, detections, same_category=only_candidates)
    found: Sequence[Rle] | Float64s
    known: Sequence[Rle] | Float64s
    if iou_type == "bbox":
        found, known = detections.boxes[cells.detection_order], truth.boxes[cells.object_order]
    else:
        masks = _masks(truth, detections)
        if only_candidates:
            cells = cells.narrowed(_may_match(*cells.pairs(), *masks, truth.crowd))
        found, known = masks[0].take(cells.detection_order)[:], masks[1].take(cells.object_order)[:]
    crowd = truth.crowd.view(np.uint8)[cells.object_order]
    bounds = zip(cells.detections.tolist(), cells.objects.tolist(), strict=True)
    ious = [coco_mask.iou(found[a:b], known[c:d], crowd[c:d]).ravel() for (a, b), (c, d) in bounds]
    return cells.listed(np.concatenate([np.empty(0), *ious]), IOU_THRESHOLDS[0] if only_candidates else 0.0)


@dataclass(frozen=True)
class _Cells:
    """What is compared with each other: C images, or categories on an image, that have detections and objects.

    Attributes:
        detection_order: [D] of the block, those of a cell one after the other; others may be between.
        object_order: [G] likewise.
        detections: [C, 2] where those of a cell begin and end in their order.
        objects: [C, 2] likewise.
    """

    detection_order: Int64s
    object_order: Int64s
    detections: Int64s
    objects: Int64s

    @classmethod
    def of(cls, truth: TruthBlock, detections: DetectionBlock, same_category: bool) -> _Cells:
        keys = [image_indices(detections.offsets), image_indices(truth.offsets)]
        if same_category:
            categories = [detections.categories, truth.categories]
            num = 1 + max(int(each.max(initial=0)) for each in categories)
            keys = [images * num + each for images, each in zip(keys, categories, strict=True)]
        orders = [np.argsort(each, kind="stable") for each in keys]
        keys = [each[order] for each, order in zip(keys, orders, strict=True)]
        cells = np.unique(keys[1])
        bounds = [np.stack([np.searchsorted(each, cells, side) for side in ("left", "right")], 1) for each in keys]
        full = bounds[0][:, 0] < bounds[0][:, 1]
        return cls(*orders, *(each[full] for each in bounds))

    def pairs(self, which: Int64s | None = None) -> tuple[Int64s, Int64s]:
        """Detections and objects [P] of the block, cell by cell, by detection, then by object: all or some of these."""
        num_objects = np.diff(self.objects).ravel()
        ends = np.cumsum(np.diff(self.detections).ravel() * num_objects)
        sizes = np.diff(ends, prepend=0)
        which = np.arange(sizes.sum()) if which is None else which
        cells = owners_of(sizes)[which]
        rows, columns = np.divmod(which - (ends - sizes)[cells], num_objects[cells])
        detections, objects = self.detections[cells, 0] + rows, self.objects[cells, 0] + columns
        return self.detection_order[detections], self.object_order[objects]

    def narrowed(self, wanted: Bools) -> _Cells:
        """Without the detections and objects of which no pair is wanted [P]; other pairs of the rest remain."""
        orders, bounds = [], []
        sides = (self.detection_order, self.detections), (self.object_order, self.objects)
        for (order, within), chosen in zip(sides, self.pairs(np.flatnonzero(wanted)), strict=True):
            kept = np.zeros(len(order), np.bool_)
            kept[chosen] = True
            orders.append(order[kept[order]])
            bounds.append(offsets_of(kept[order].view(np.int8))[within])
        full = bounds[0][:, 0] < bounds[0][:, 1]
        return _Cells(*orders, *(each[full] for each in bounds))

    def listed(self, ious: Float64s, least: float) -> Overlaps:
        """Those pairs [P] that are above 0 and at least this."""
        where = np.flatnonzero((ious > 0) & (ious >= least))
        detections, objects = self.pairs(where)
        return Overlaps(detections, objects, ious[where]).take(np.argsort(detections, kind="stable"))


def _masks(truth: TruthBlock, detections: DetectionBlock) -> tuple[RleColumn, RleColumn]:
    if truth.rles is None or detections.rles is None:
        raise ValueError("masks are compared, and the ground truth or the detections have none")
    _check_sizes(truth.rles, truth.offsets, truth, "an annotation")
    _check_sizes(detections.rles, detections.offsets, truth, "a detection")
    return detections.rles, truth.rles


def _may_match(detections: Int64s, objects: Int64s, found: RleColumn, known: RleColumn, crowd: Bools) -> Bools:
    """[P] whether an IoU can reach the lowest threshold, from areas and the columns that both masks lie in.

    Where runs of both are empty at one place, pycocotools compares no further, and no such bound holds.
    """
    if not (found.is_plain or known.is_plain):
        return np.ones(len(detections), np.bool_)
    area, other = found.areas[detections], known.areas[objects]
    spans, others = found.spans[detections], known.spans[objects]
    common = np.minimum(spans[:, 1], others[:, 1]) - np.maximum(spans[:, 0], others[:, 0])
    most = np.minimum(np.minimum(area, other), np.maximum(common, 0) * found.sizes[detections, 0])
    return (most > 0) & (most >= IOU_THRESHOLDS[0] * np.where(crowd[objects], area, area + other - most))


def _check_sizes(rles: RleColumn, offsets: Int64s, truth: TruthBlock, owner: str) -> None:
    image_of = image_indices(offsets)
    wrong = np.flatnonzero((rles.sizes != truth.image_sizes[image_of]).any(axis=1))
    if wrong.size:
        image, size = int(image_of[wrong[0]]), rles.sizes[wrong[0]].tolist()
        raise InputError(
            f"image {truth.image_ids[image]!r}: the mask of {owner} has size {size}, the image "
            f"{truth.image_sizes[image].tolist()} (height, width); are height and width swapped, or was the picture "
            "turned by its EXIF orientation?"
        )
