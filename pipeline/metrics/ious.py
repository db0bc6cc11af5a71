"""Overlap of every detection with every object of the same image, by pycocotools' own C code."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, pairwise

import numpy as np
from pycocotools import mask as coco_mask

from pipeline.coco.errors import InputError
from pipeline.masks.rle import Rle
from pipeline.metrics.blocks import DetectionBlock, TruthBlock
from pipeline.metrics.protocol import IouType
from pipeline.tables.arrays import Float64s, Int64s, Uint8s
from pipeline.tables.ragged import image_indices


def block_ious(
    truth: TruthBlock, detections: DetectionBlock, iou_type: IouType, same_category_only: bool
) -> list[Float64s]:
    """Intersection over union; for crowds intersection over the detection's own area, as COCO defines it.

    Args:
        truth: objects of N images.
        detections: detections on the same images.
        iou_type: compare boxes or masks.
        same_category_only: leave pairs of different categories at 0, which is enough for AP and spares decoding
            the masks of categories that the image does not show.

    Returns:
        N matrices [D_i, G_i], detections and objects in the blocks' order.

    Raises:
        ValueError: masks are wanted and a block has none, or a mask's size is not its image's. pycocotools would
            call the IoU of such a pair -1, and the AP would silently be 0.
    """
    if iou_type == "bbox":
        ious = _box_ious(truth, detections)
    else:
        ious = _mask_ious(truth, detections, same_category_only)
    if same_category_only:
        for image, (objects_at, detections_at) in enumerate(_image_slices(truth, detections)):
            ious[image] *= detections.categories[detections_at][:, None] == truth.categories[objects_at]
    return ious


def _box_ious(truth: TruthBlock, detections: DetectionBlock) -> list[Float64s]:
    crowd = truth.crowd.view(np.uint8)
    return [
        _iou(detections.boxes[detections_at], truth.boxes[objects_at], crowd[objects_at])
        for objects_at, detections_at in _image_slices(truth, detections)
    ]


def _mask_ious(truth: TruthBlock, detections: DetectionBlock, same_category_only: bool) -> list[Float64s]:
    if truth.rles is None or detections.rles is None:
        raise ValueError("masks are compared, and the ground truth or the detections have none")
    _check_sizes(truth.rles, truth.offsets, truth, "an annotation")
    _check_sizes(detections.rles, detections.offsets, truth, "a detection")
    crowd = truth.crowd.view(np.uint8)
    ious: list[Float64s] = []
    for objects_at, detections_at in _image_slices(truth, detections):
        rles = detections.rles[detections_at]
        if not same_category_only:
            ious.append(_iou(rles, truth.rles[objects_at], crowd[objects_at]))
            continue
        rows = np.flatnonzero(np.isin(detections.categories[detections_at], truth.categories[objects_at]))
        full = np.zeros((len(rles), objects_at.stop - objects_at.start))
        full[rows] = _iou([rles[row] for row in rows.tolist()], truth.rles[objects_at], crowd[objects_at])
        ious.append(full)
    return ious


def _iou(detections: Sequence[Rle] | Float64s, truth: Sequence[Rle] | Float64s, crowd: Uint8s) -> Float64s:
    """[D, G], also where pycocotools would return an empty list."""
    if len(detections) == 0 or len(truth) == 0:
        return np.zeros((len(detections), len(truth)))
    return coco_mask.iou(detections, truth, crowd)


def _image_slices(truth: TruthBlock, detections: DetectionBlock) -> list[tuple[slice, slice]]:
    """Per image: its objects and its detections."""
    return list(zip(_slices(truth.offsets), _slices(detections.offsets), strict=True))


def _slices(offsets: Int64s) -> list[slice]:
    ends = offsets.tolist()
    return [slice(start, stop) for start, stop in pairwise(ends)]


def _check_sizes(rles: Sequence[Rle], offsets: Int64s, truth: TruthBlock, owner: str) -> None:
    sizes = np.fromiter(chain.from_iterable(rle["size"] for rle in rles), np.int64, 2 * len(rles)).reshape(-1, 2)
    image_of = image_indices(offsets)
    wrong = np.flatnonzero((sizes != truth.image_sizes[image_of]).any(axis=1))
    if wrong.size:
        image = int(image_of[wrong[0]])
        raise InputError(
            f"image {truth.image_ids[image]!r}: the mask of {owner} has size {sizes[wrong[0]].tolist()}, the image "
            f"{truth.image_sizes[image].tolist()} (height, width); are height and width swapped, or was the picture "
            "turned by its EXIF orientation?"
        )
