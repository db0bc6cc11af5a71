"""Made-up metrics that look like those of a real evaluation, and pictures for a gallery."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from pipeline.evaluate.report.cards import GalleryImage
from pipeline.model.categories import COCO_CATEGORIES, Category
from pipeline.page.thumbnails import Overlay

NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
RECALL = np.linspace(0, 1, 101)
THREE = (Category(1, "cat"), Category(2, "<script>alert('dog')</script>"), Category(3, "$\\frac{1}{2}$ Äpfel & Ψ"))


def sample_metrics(categories: tuple[Category, ...] = COCO_CATEGORIES, seed: int = 0) -> dict[str, Any]:
    """All sections. The last category has no objects: what is measured on them is null."""
    rng = np.random.default_rng(seed)
    rows = [_class(rng, category, i == len(categories) - 1) for i, category in enumerate(categories)]
    stats = [0.437, 0.648, 0.472, 0.238, 0.471, 0.611, 0.341, 0.549, 0.575, 0.381, 0.617, 0.742]
    return {
        "format": 1,
        "title": "Swin-B on val2017",
        "sources": {
            "predictions": "s3://results/val2017/run-17",
            "ground_truth": "s3://data/coco/annotations/instances_val2017.json",
            "model": {"name": "swin_b (cascade_mask_rcnn_swin_base.pth)", "weights_sha256": "3f" * 32},
        },
        "images": {
            "ground_truth": 5000,
            "evaluated": 5000,
            "annotated": 4952,
            "failed": 31,
            "without_result": 17,
            "not_in_ground_truth": 12,
        },
        "decisions": [
            "17 images of the ground truth have no result: they count as images on which nothing was found.",
            "31 images failed (not_found 24, corrupt_image 7): they count as images on which nothing was found.",
            "12 images of the predictions are not in the ground truth and were left out.",
        ],
        "failures": {"not_found": 24, "corrupt_image": 7},
        "categories": [
            {"id": r["category_id"], "name": r["name"], "objects": r["objects"], "crowd": 4, "detections": 4711}
            for r in rows
        ],
        "iou_types": ["bbox", "segm"],
        "max_dets": [1, 10, 100],
        "summary": {
            "segm": {"stats": stats, "names": list(NAMES)},
            "bbox": {"stats": [min(1.0, s + 0.06) for s in stats[:-1]] + [-1.0], "names": list(NAMES)},
        },
        "mmdet": {"bbox_mAP": 0.497, "bbox_mAP_50": 0.708, "segm_mAP": 0.437, "segm_mAP_50": 0.648, "segm_mAP_s": None},
        "per_class": {"segm": rows, "bbox": rows},
        "curves": {"segm": _curves(rng, rows), "bbox": _curves(rng, rows)},
        "confusion": _confusion(rng, rows),
        "errors": _errors(rng, rows),
        "calibration": _calibration(rng, rows),
        "thresholds": _thresholds(rng, rows),
    }


def sample_gallery(
    categories: tuple[Category, ...] = COCO_CATEGORIES, per_kind: int = 3, seed: int = 0
) -> Iterator[GalleryImage]:
    """Worst and best images of each class, photograph-like; every tenth could not be read."""
    rng = np.random.default_rng(seed)
    number = 0
    for label, category in enumerate(categories):
        for kind, qualities in (("worst", (0.0, 0.12, 0.2)), ("best", (0.97, 0.95, 0.9))):
            for quality in qualities[:per_kind]:
                number += 1
                yield _gallery_image(rng, category, label, kind, quality, 100_000 + number, number % 10 == 3)


def _gallery_image(
    rng: np.random.Generator, category: Category, label: int, kind: Any, quality: float, image_id: int, lost: bool
) -> GalleryImage:
    height, width = ((480, 640), (640, 427))[image_id % 3 == 0]
    truth = _overlay(rng, height, width, label, 4, scored=False)
    detections = _overlay(rng, height, width, label, 5, scored=True)
    pixels = None if lost else photograph(rng, height, width)
    reason = "not_found: no such bucket or object" if lost else ""
    return GalleryImage(category.name, kind, image_id, quality, pixels, truth, detections, 2, 3, 2, reason)


def photograph(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Noise with the spectrum of natural images, amplitude as 1 / frequency, RGB uint8."""
    y, x = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    spectrum = rng.normal(size=(3, height, x.shape[1])) * np.exp(2j * np.pi * rng.random((3, height, x.shape[1])))
    spectrum[1:] = 0.8 * spectrum[:1] + 0.3 * spectrum[1:]
    planes = np.fft.irfft2(spectrum / np.maximum(np.hypot(y, x), 1 / width), (height, width))
    planes = (planes - planes.mean()) / planes.std()
    return np.clip(118 + 52 * planes, 0, 255).astype(np.uint8).transpose(1, 2, 0).copy()


def _overlay(rng: np.random.Generator, height: int, width: int, label: int, count: int, scored: bool) -> Overlay:
    corners = rng.uniform(0, 0.7, (count, 2)) * (width, height)
    sizes = rng.uniform(0.1, 0.3, (count, 2)) * (width, height)
    boxes = np.concatenate([corners, corners + sizes], axis=1)
    y, x = np.mgrid[:height, :width]
    masks = np.stack(
        [((2 * x - a - c) / (c - a)) ** 2 + ((2 * y - b - d) / (d - b)) ** 2 < 1 for a, b, c, d in boxes], axis=-1
    )
    rles = coco_mask.encode(np.asfortranarray(masks.astype(np.uint8)))
    scores = rng.uniform(0.1, 1, count) if scored else None
    return Overlay(boxes, np.full(count, label), scores, rles)


def _class(rng: np.random.Generator, category: Category, empty: bool) -> dict[str, Any]:
    ap = float(rng.beta(4, 5))
    numbers = {"AP": ap, "AP50": min(1, ap * 1.45), "AP75": ap * 1.05, "APs": ap * 0.5, "APm": ap, "APl": ap * 1.2}
    return {
        "category_id": category.id,
        "name": category.name,
        **dict.fromkeys([*numbers, "AR"]),
        **({} if empty else {**numbers, "AR": min(1.0, ap + 0.12)}),
        "objects": 0 if empty else int(rng.lognormal(6, 1)),
        "detections": int(rng.lognormal(8, 1)),
    }


def _curve(ap: float | None, worse: float = 0.0) -> list[float | None]:
    if ap is None:
        return [None] * 101
    reach = min(1.0, ap + 0.35 - worse)
    return [round(max(0.0, 1 - (r / reach) ** 4), 4) if r < reach else 0.0 for r in RECALL.tolist()]


def _curves(rng: np.random.Generator, rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "recall": RECALL.tolist(),
        "overall": {"0.50": _curve(0.6), "0.75": _curve(0.45), "0.50:0.95": _curve(0.4)},
        "per_class": [{"name": r["name"], "0.50": _curve(r["AP"]), "0.75": _curve(r["AP"], 0.15)} for r in rows],
    }


def _confusion(rng: np.random.Generator, rows: list[dict[str, Any]]) -> dict[str, Any]:
    size = len(rows)
    matrix = np.zeros((size + 1, size + 1), np.int64)
    for i, row in enumerate(rows):
        parts = rng.dirichlet(np.concatenate([np.full(size, 0.02), [1.5]])) * 0.4
        parts[i] += 0.6
        matrix[i] = rng.multinomial(row["objects"], parts / parts.sum())
    matrix[-1, :-1] = rng.lognormal(5, 1, size)
    labels = [*(r["name"] for r in rows), "background"]
    return {"score_threshold": 0.3, "iou_threshold": 0.5, "labels": labels, "matrix": matrix.tolist()}


def _errors(rng: np.random.Generator, rows: list[dict[str, Any]]) -> dict[str, Any]:
    kinds = ("classification", "localisation", "both", "duplicate", "background", "missed")
    gains = (0.031, 0.068, 0.011, 0.0021, 0.042, 0.071)
    per_class = [{"name": r["name"], "counts": {k: int(rng.lognormal(4, 1)) for k in kinds}} for r in rows]
    return {
        "iou_threshold": 0.5,
        "background_threshold": 0.1,
        "AP": 0.648,
        "dAP": dict(zip(kinds, gains, strict=True)),
        "dAP_false_positives": 0.151,
        "dAP_false_negatives": 0.182,
        "counts": {k: sum(c["counts"][k] for c in per_class) for k in kinds},
        "per_class": per_class,
    }


def _calibration(rng: np.random.Generator, rows: list[dict[str, Any]]) -> dict[str, Any]:
    edges = np.linspace(0, 1, 21)
    middle = (edges[:-1] + edges[1:]) / 2
    counts = (2e5 * np.exp(-5 * middle)).astype(int).tolist()
    counts[0] = 0
    return {
        "bin_edges": edges.tolist(),
        "overall": {
            "count": counts,
            "mean_score": [None, *middle[1:].tolist()],
            "precision": [None, *(middle[1:] ** 1.4).tolist()],
            "ece": 0.083,
        },
        "per_class": [{"name": r["name"], "ece": float(rng.uniform(0, 0.3)), "count": r["detections"]} for r in rows],
    }


def _thresholds(rng: np.random.Generator, rows: list[dict[str, Any]]) -> dict[str, Any]:
    classes = []
    for row in rows:
        reached = row["AP"] is not None and row["AP"] > 0.3
        recall = float(rng.uniform(0.2, 0.8)) if reached else None
        classes.append(
            {
                "name": row["name"],
                "threshold": float(rng.uniform(0.4, 0.95)) if reached else None,
                "precision": 0.953 if reached else None,
                "precision_low": 0.93 if reached else None,
                "precision_high": 0.971 if reached else None,
                "recall": recall,
                "recall_low": recall and recall - 0.04,
                "recall_high": recall and recall + 0.05,
                "labels": int(row["objects"] * recall) if recall else 0,
                "objects": row["objects"],
                "best_f1": row["AP"],
                "best_f1_threshold": 0.41 if row["AP"] else None,
            }
        )
    return {"wanted_precision": 0.95, "iou_threshold": 0.5, "iou_type": "segm", "classes": classes}
