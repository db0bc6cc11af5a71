"""What metrics.json holds: every figure of an evaluation, as plain JSON. The report is made from it.

Undefined figures (a category without objects) are null, except in ``stats`` and ``mmdet``, which keep the -1 of
pycocotools and mmdet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluate.inputs.books import InputReport
from pipeline.evaluate.measure import Measured
from pipeline.evaluate.shuffle.sorted_runs import ERRORS_STREAM
from pipeline.metrics.analysis.calibration import BIN_EDGES, Calibration
from pipeline.metrics.analysis.confusion import MATCH_IOU
from pipeline.metrics.analysis.outcomes import BACKGROUND_IOU, ERRORS, POSITIVE_IOU
from pipeline.metrics.analysis.thresholds import ClassThreshold, Proportion
from pipeline.metrics.analysis.tide import error_summary
from pipeline.metrics.ap.figures import Arrays, ap_limit, coco_stats, mmdet_metrics, per_class, stat_names
from pipeline.metrics.ap.hits import HIT_IOU
from pipeline.metrics.protocol import IOU_THRESHOLDS, RECALL_THRESHOLDS, IouType
from pipeline.tables.arrays import Float64s

FORMAT = 1
_CURVE_IOUS = (0.5, 0.75)


def arrays_of(measured: Measured, iou_type: IouType) -> Arrays:
    """The arrays of ``COCOeval.eval``."""
    return Arrays.stack([each.curves for each in measured.reduced[iou_type]])


def figures(measured: Measured, max_dets: Sequence[int]) -> dict[str, Any]:
    """COCO's part: books, categories, the twelve figures, mmdet's names, each class, curves.

    Args:
        measured: all of it.
        max_dets: the limits it was measured with.
    """
    content: dict[str, Any] = {
        "format": FORMAT,
        "images": _books(measured.inputs, measured.num_images),
        "categories": _categories(measured),
        "iou_types": list(measured.num_objects),
        "max_dets": list(max_dets),
        "summary": {},
        "mmdet": {},
        "per_class": {},
        "curves": {},
    }
    for iou_type in measured.num_objects:
        arrays = arrays_of(measured, iou_type)
        stats = coco_stats(arrays, max_dets)
        content["summary"][iou_type] = {"stats": stats.tolist(), "names": stat_names(max_dets)}
        content["mmdet"].update(mmdet_metrics(stats, iou_type, max_dets))
        content["per_class"][iou_type] = [
            {"category_id": row["id"], "name": row["name"], **figures, **_counts(row)}
            for row, figures in zip(content["categories"], per_class(arrays, max_dets), strict=True)
        ]
        content["curves"][iou_type] = _curves(arrays, ap_limit(max_dets), measured.categories.names)
    return content


def analysis_figures(
    measured: Measured, iou_type: IouType, score_threshold: float, wanted_precision: float
) -> dict[str, Any]:
    """The part beyond AP; empty if nothing was analysed.

    Args:
        measured: all of it.
        iou_type: what the overlaps are of.
        score_threshold: of the confusion matrix.
        wanted_precision: of the thresholds.
    """
    names, analysis = measured.categories.names, measured.analysis
    if analysis is None or analysis.errors is None:
        return {}
    summary = error_summary([each.curves for each in measured.reduced[ERRORS_STREAM]], analysis.errors)
    labels = [error.label for error in ERRORS]
    return {
        "confusion": {
            "score_threshold": score_threshold,
            "iou_threshold": MATCH_IOU,
            "labels": [*names, "background"],
            "matrix": analysis.confusion.tolist(),
        },
        "errors": {
            "iou_threshold": POSITIVE_IOU,
            "background_threshold": BACKGROUND_IOU,
            "AP": summary.ap,
            "dAP": summary.gains,
            "dAP_false_positives": summary.gain_false_positives,
            "dAP_false_negatives": summary.gain_false_negatives,
            "counts": summary.counts,
            "per_class": [
                {"name": name, "counts": dict(zip(labels, counts, strict=True))}
                for name, counts in zip(names, analysis.errors.counts.tolist(), strict=True)
            ],
        },
        "calibration": _calibration(names, [_wanted(each.calibration) for each in measured.reduced[iou_type]]),
        "thresholds": {
            "wanted_precision": wanted_precision,
            "iou_threshold": HIT_IOU,
            "iou_type": iou_type,
            "classes": [
                _threshold(name, threshold)
                for name, threshold in zip(names, class_thresholds(measured, iou_type), strict=True)
            ],
        },
    }


def class_thresholds(measured: Measured, iou_type: IouType) -> list[ClassThreshold]:
    """[K] of an evaluation with its analysis."""
    return [_wanted(each.threshold) for each in measured.reduced[iou_type]]


def _wanted(value: Any) -> Any:
    if value is None:
        raise ValueError("the evaluation was made without its analysis")
    return value


def _books(inputs: InputReport, num_images: int) -> dict[str, int]:
    return {
        "ground_truth": inputs.images,
        "evaluated": num_images,
        "annotated": inputs.common - inputs.failed.count,
        "failed": inputs.failed.count,
        "without_result": inputs.missing.count,
        "not_in_ground_truth": inputs.unknown.count,
    }


def _categories(measured: Measured) -> list[dict[str, Any]]:
    objects = next(iter(measured.num_objects.values()))[:, 0]
    columns = (objects, measured.num_crowd, measured.num_detections)
    rows = zip(measured.categories.ids, measured.categories.names, *(c.tolist() for c in columns), strict=True)
    return [dict(zip(("id", "name", "objects", "crowd", "detections"), row, strict=True)) for row in rows]


def _counts(category: Mapping[str, Any]) -> dict[str, int]:
    return {"objects": category["objects"], "detections": category["detections"]}


def _curves(arrays: Arrays, limit: int, names: Sequence[str]) -> dict[str, Any]:
    """Precision at each recall, objects of any size."""
    precision = arrays.precision[..., 0, limit]  # [T, R, K]
    at = {f"{iou:.2f}": precision[int(np.flatnonzero(iou == IOU_THRESHOLDS)[0])] for iou in _CURVE_IOUS}
    defined = precision[0, 0] > -1
    everything = {**at, f"{IOU_THRESHOLDS[0]:.2f}:{IOU_THRESHOLDS[-1]:.2f}": precision.mean(axis=0)}
    overall = {key: _numbers(values[:, defined].mean(axis=1)) for key, values in everything.items() if defined.any()}
    classes = [
        {"name": name, **{key: _numbers(values[:, k]) for key, values in at.items()}}
        for k, name in enumerate(names)
        if defined[k]
    ]
    return {"recall": _numbers(RECALL_THRESHOLDS), "overall": overall, "per_class": classes}


def _calibration(names: Sequence[str], parts: Sequence[Calibration]) -> dict[str, Any]:
    overall = sum(parts[1:], parts[0])
    return {
        "bin_edges": BIN_EDGES.tolist(),
        "overall": {
            "count": overall.counts.tolist(),
            "mean_score": _numbers(overall.mean_scores),
            "precision": _numbers(overall.precisions),
            "ece": overall.expected_error,
        },
        "per_class": [
            {"name": name, "ece": part.expected_error, "count": int(part.counts.sum())}
            for name, part in zip(names, parts, strict=True)
        ],
    }


def _threshold(name: str, at: ClassThreshold) -> dict[str, Any]:
    def proportion(key: str, value: Proportion | None) -> dict[str, float | None]:
        low, high = (None, None) if value is None else (value.low, value.high)
        return {key: None if value is None else value.value, f"{key}_low": low, f"{key}_high": high}

    plain = {k: v for k, v in asdict(at).items() if k not in ("precision", "recall")}
    return {"name": name, **plain, **proportion("precision", at.precision), **proportion("recall", at.recall)}


def _numbers(values: Float64s | NDArray[np.floating]) -> list[float | None]:
    """NaN, of an empty bin, becomes null."""
    return [None if np.isnan(value) else value for value in values.tolist()]
