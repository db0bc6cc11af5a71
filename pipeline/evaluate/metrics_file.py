"""What metrics.json holds: every figure of an evaluation, as plain JSON. The report is made from it.

Undefined figures (a category without objects) are null, except in ``stats`` and ``mmdet``, which keep the -1 of
pycocotools and mmdet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.evaluate.inputs.books import InputReport
from pipeline.evaluate.measure import Measured
from pipeline.metrics.ap.figures import Arrays, ap_limit, coco_stats, mmdet_metrics, per_class, stat_names
from pipeline.metrics.metric import nan_to_null
from pipeline.metrics.protocol import IOU_THRESHOLDS, RECALL_THRESHOLDS, IouType

FORMAT = 1
_CURVE_IOUS = (0.5, 0.75)


def arrays_of(measured: Measured, iou_type: IouType) -> Arrays:
    """The arrays of ``COCOeval.eval``."""
    return Arrays.stack(measured.curves[iou_type])


def figures(measured: Measured, max_dets: Sequence[int]) -> dict[str, Any]:
    """COCO's part: books, categories, the twelve figures, mmdet's names, each class, curves.

    Args:
        measured: of the same evaluation.
        max_dets: the limits it was measured with.
    """
    content: dict[str, Any] = {
        "format": FORMAT,
        "images": _books(measured.inputs, measured.num_images),
        "categories": _categories(measured),
        "iou_types": list(measured.curves),
        "max_dets": list(max_dets),
        "summary": {},
        "mmdet": {},
        "per_class": {},
        "curves": {},
    }
    for iou_type in measured.curves:
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


def analysis_figures(measured: Measured) -> dict[str, Any]:
    """The part beyond AP: a section of each metric; empty if nothing was analysed."""
    if measured.analysis is None or not measured.num_images:
        return {}
    names = measured.categories.names
    return {section: figures.to_json(names) for section, figures in measured.analysis.figures.items()}


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
    columns = (measured.num_objects, measured.num_crowd, measured.num_detections)
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
    overall = {key: nan_to_null(values[:, defined].mean(axis=1)) for key, values in everything.items() if defined.any()}
    classes = [
        {"name": name, **{key: nan_to_null(values[:, k]) for key, values in at.items()}}
        for k, name in enumerate(names)
        if defined[k]
    ]
    return {"recall": nan_to_null(RECALL_THRESHOLDS), "overall": overall, "per_class": classes}
