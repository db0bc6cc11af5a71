"""Overlap of every detection with every object of the same image, by pycocotools' own C code."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, pairwise

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from pipeline.coco.errors import InputError
from pipeline.masks.rle import Rle
from pipeline.metrics.blocks import Float64s, FoundBlock, Int64s, TruthBlock
from pipeline.metrics.protocol import IouType
from pipeline.tables.ragged import image_indices


def block_ious(truth: TruthBlock, found: FoundBlock, iou_type: IouType, same_category_only: bool) -> list[Float64s]:
    """Intersection over union; for crowds intersection over the detection's own area, as COCO defines it.

    Args:
        truth: objects of N images.
        found: detections on the same images.
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
        ious = _box_ious(truth, found)
    else:
        ious = _mask_ious(truth, found, same_category_only)
    if same_category_only:
        for image, (objects, detections) in enumerate(_image_slices(truth, found)):
            ious[image] *= found.categories[detections][:, None] == truth.categories[objects]
    return ious


def _box_ious(truth: TruthBlock, found: FoundBlock) -> list[Float64s]:
    crowd = truth.crowd.view(np.uint8)
    return [
        _iou(found.boxes[detections], truth.boxes[objects], crowd[objects])
        for objects, detections in _image_slices(truth, found)
    ]


def _mask_ious(truth: TruthBlock, found: FoundBlock, same_category_only: bool) -> list[Float64s]:
    if truth.rles is None or found.rles is None:
        raise ValueError("masks are compared, and the ground truth or the detections have none")
    _check_sizes(truth.rles, truth.offsets, truth, "an annotation")
    _check_sizes(found.rles, found.offsets, truth, "a detection")
    crowd = truth.crowd.view(np.uint8)
    ious: list[Float64s] = []
    for objects, detections in _image_slices(truth, found):
        rles = found.rles[detections]
        if not same_category_only:
            ious.append(_iou(rles, truth.rles[objects], crowd[objects]))
            continue
        rows = np.flatnonzero(np.isin(found.categories[detections], truth.categories[objects]))
        full = np.zeros((len(rles), objects.stop - objects.start))
        full[rows] = _iou([rles[row] for row in rows.tolist()], truth.rles[objects], crowd[objects])
        ious.append(full)
    return ious


def _iou(found: Sequence[Rle] | Float64s, truth: Sequence[Rle] | Float64s, crowd: NDArray[np.uint8]) -> Float64s:
    """[D, G], also where pycocotools would return an empty list."""
    if len(found) == 0 or len(truth) == 0:
        return np.zeros((len(found), len(truth)))
    return coco_mask.iou(found, truth, crowd)


def _image_slices(truth: TruthBlock, found: FoundBlock) -> list[tuple[slice, slice]]:
    """Per image: its objects and its detections."""
    return list(zip(_slices(truth.offsets), _slices(found.offsets), strict=True))


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
