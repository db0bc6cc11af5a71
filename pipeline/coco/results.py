"""Detections as COCO annotations: plain dicts that any JSON library and ``pycocotools`` take as they are.

`Detections` hold numpy arrays and bytes, neither of which JSON knows; here they become int, float and str
without loss (a float32 is exact as a Python float, and compressed RLE counts are ASCII).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from pycocotools import mask as coco_mask

from pipeline.masks.rle import Rle
from pipeline.model.categories import Category
from pipeline.model.detections import Detections
from pipeline.storage.whole_file import write_whole


class CocoRle(TypedDict):
    """A compressed RLE as COCO's JSON files hold it."""

    size: list[int]  # [H, W]
    counts: str


class CocoAnnotation(TypedDict):
    """One detected object. With ``score`` it serves as a result, with ``iscrowd`` as ground truth (pseudo-labels)."""

    id: int
    image_id: int
    category_id: int
    bbox: list[float]  # x, y, width, height in pixels
    score: float
    area: int  # pixels of the mask
    segmentation: CocoRle
    iscrowd: int


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
    return [
        CocoAnnotation(
            id=first_id + i,
            image_id=image_id,
            category_id=categories[label].id,
            bbox=_xywh(box),
            score=score,
            area=int(coco_mask.area(rle)),
            segmentation=coco_rle(rle),
            iscrowd=0,
        )
        for i, (box, score, label, rle) in enumerate(
            zip(detections.boxes.tolist(), detections.scores.tolist(), detections.labels.tolist(), rles, strict=True)
        )
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
