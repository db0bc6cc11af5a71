"""Comparing detections with a reference: one-to-one matching, mask IoU, the largest differences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating[Any]]


class Found(NamedTuple):
    """Boxes ``(N, 4)`` xyxy, scores ``(N,)`` and labels ``(N,)``; `Detections` has the same attributes."""

    boxes: FloatArray
    scores: FloatArray
    labels: NDArray[np.integer[Any]]


class Difference(NamedTuple):
    """The largest differences over matched detections."""

    box_px: float
    score: float


def box_iou(a: FloatArray, b: FloatArray) -> NDArray[np.float64]:
    """``(N, 4)`` and ``(M, 4)`` xyxy -> ``(N, M)``; boxes without area match those at the same place."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    common = (high - low).clip(0).prod(-1)
    area_a, area_b = (a[:, 2:] - a[:, :2]).prod(-1), (b[:, 2:] - b[:, :2]).prod(-1)
    union = area_a[:, None] + area_b - common
    at_same_place = np.abs(a[:, None] - b[None]).max(-1) < 0.01
    return np.where(union > 0, common / np.where(union > 0, union, 1), at_same_place)


def match(reference: Any, other: Any, min_iou: float = 0.99, max_score: float = 1e-3) -> list[tuple[int, int]]:
    """One-to-one pairs of equal label, IoU above ``min_iou`` and scores within ``max_score``, best IoU first."""
    iou = box_iou(np.asarray(reference.boxes), np.asarray(other.boxes))
    apart = np.abs(np.asarray(reference.scores, np.float64)[:, None] - np.asarray(other.scores, np.float64))
    alike = np.asarray(reference.labels)[:, None] == np.asarray(other.labels)
    rows, columns = np.nonzero((iou > min_iou) & (apart < max_score) & alike)
    pairs: dict[int, int] = {}
    for k in np.lexsort((apart[rows, columns], -iou[rows, columns])):
        if rows[k] not in pairs and columns[k] not in pairs.values():
            pairs[int(rows[k])] = int(columns[k])
    return list(pairs.items())


def assert_same(reference: Any, other: Any) -> Difference:
    """Every detection of each side has its match on the other."""
    pairs = match(reference, other)
    counts = (len(pairs), len(reference.scores), len(other.scores))
    assert len(set(counts)) == 1, "matched {}, reference {}, other {}".format(*counts)
    if not pairs:
        return Difference(0.0, 0.0)
    rows, columns = map(list, zip(*pairs, strict=True))
    return Difference(
        float(np.abs(reference.boxes[rows] - other.boxes[columns]).max()),
        float(np.abs(reference.scores[rows] - other.scores[columns]).max()),
    )


def mask_iou(a: Sequence[Any], b: Sequence[Any]) -> list[float]:
    """IoU of the RLEs at equal positions; two empty masks are equal."""
    # Here, as the rest is of use where there is none of it.
    from pycocotools import mask as coco_mask

    pairs = list(zip(a, b, strict=True))
    return [
        1.0 if not coco_mask.area(x) and not coco_mask.area(y) else float(coco_mask.iou([x], [y], [0])[0][0])
        for x, y in pairs
    ]
