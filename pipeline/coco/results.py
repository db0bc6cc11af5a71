"""Detections as COCO annotations: plain dicts that any JSON library and ``pycocotools`` take as they are.

`Detections` hold numpy arrays and bytes, neither of which JSON knows; here they become int, float and str
without loss (a float32 is exact as a Python float, and compressed RLE counts are ASCII).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from operator import index
from pathlib import Path
from typing import Any, SupportsIndex, TypedDict

import numpy as np
from pycocotools import mask as coco_mask

from pipeline.masks.rle import Rle
from pipeline.model.categories import Category
from pipeline.model.detections import Detections
from pipeline.storage.whole_file import write_whole


class CocoRle(TypedDict):
    """A compressed RLE as COCO's JSON files hold it."""

    size: list[int]  # [H, W]
    counts: str


class CocoResult(TypedDict):
    """One detected object, as COCO's results files hold it."""

    image_id: int
    category_id: int
    bbox: list[float]  # x, y, width, height in pixels
    score: float
    segmentation: CocoRle


class CocoAnnotation(CocoResult):
    """The same as an annotation: with ``score`` it serves as a result, with ``iscrowd`` as ground truth."""

    id: int
    area: int  # pixels of the mask
    iscrowd: int


def coco_results(
    boxes: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    rles: Sequence[Rle],
    image_id: SupportsIndex,
    categories: Sequence[Category],
) -> list[CocoResult]:
    """One image's detections as results, in their order.

    Args:
        boxes, scores, labels: those of `Detections`.
        rles: its masks.
        image_id: id of the image; COCO's tools take whole numbers only.
        categories: what the labels stand for.

    Raises:
        IndexError: a label without a category.
        TypeError: the id is no whole number.
    """
    number = index(image_id)  # of numpy's whole numbers too, which JSON does not know
    return [
        CocoResult(
            image_id=number,
            category_id=categories[label].id,
            bbox=_xywh(box),
            score=score,
            segmentation=coco_rle(rle),
        )
        for box, score, label, rle in zip(boxes.tolist(), scores.tolist(), labels.tolist(), rles, strict=True)
    ]


def coco_annotations(
    detections: Detections,
    image_id: int,
    categories: Sequence[Category],
    first_id: int = 1,
    rles: Sequence[Rle] | None = None,
) -> list[CocoAnnotation]:
    """One image's detections as annotations, in their order.

    Args:
        image_id: id of the image in the file.
        categories: what the labels stand for.
        first_id: the annotations are numbered from here; COCO reserves 0 for "no match", so start at 1.
        rles: ``detections.rle()``, where that has been computed already.

    Raises:
        IndexError: a label without a category.
    """
    rles = detections.rle() if rles is None else rles
    results = coco_results(detections.boxes, detections.scores, detections.labels, rles, image_id, categories)
    return [
        {"id": first_id + i, **result, "area": int(coco_mask.area(rle)), "iscrowd": 0}
        for i, (result, rle) in enumerate(zip(results, rles, strict=True))
    ]


def coco_rle(rle: Rle) -> CocoRle:
    """The same RLE with its counts as text."""
    return CocoRle(size=[int(side) for side in rle["size"]], counts=rle["counts"].decode("ascii"))


def coco_categories(categories: Sequence[Category]) -> list[dict[str, Any]]:
    """The ``categories`` list of a COCO file."""
    return [{"id": category.id, "name": category.name} for category in categories]


def write_json(content: Mapping[str, Any], path: Path) -> None:
    """Write strict JSON (no NaN, no numpy types); the file appears whole or not at all.

    Raises:
        TypeError, ValueError: something in it that JSON does not have.
        OSError: the file cannot be written.
    """
    with write_whole(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        json.dump(content, file, allow_nan=False, ensure_ascii=False)


def _xywh(box: list[float]) -> list[float]:
    x1, y1, x2, y2 = box
    return [x1, y1, x2 - x1, y2 - y1]
