"""From the metrics of an evaluation to what the page's sections show: chosen, sorted, named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from pipeline.evaluate.report.numbers import Number, defined_ratio, is_defined
from pipeline.evaluate.report.plots import confusion_view, recall_precision, reliability

WORST_CURVES = 12
IOU_LABELS = {"segm": "Masks", "bbox": "Boxes"}  # in the order of the page
ERROR_TYPES = {
    "classification": ("Class", "in the right place, of the wrong class"),
    "localisation": ("Localisation", "of the right class, overlapping too little"),
    "both": ("Both", "of the wrong class, and overlapping too little"),
    "duplicate": ("Duplicate", "of an object that a better detection matched already"),
    "background": ("Background", "where nothing is"),
    "missed": ("Missed", "objects that none of the others accounts for"),
}
_SIZES = ("small objects, up to 32² pixels", "medium objects, 32² to 96² pixels", "large objects, from 96² pixels")


class ImageShare(NamedTuple):
    """A part of all images: its CSS class, its name, how many, and their share."""

    kind: str
    label: str
    number: int
    share: float


class Headline(NamedTuple):
    """The numbers at the top, for one IoU type; -1 where undefined."""

    label: str
    ap: Number
    tiles: list[tuple[str, Number]]


class StatRow(NamedTuple):
    """One of the 12 numbers, for each IoU type in the order of the page."""

    name: str
    meaning: str
    values: list[Number]


class ClassCurve(NamedTuple):
    """A small plot for a class."""

    name: str
    ap: Number
    plot: Markup


class PrCurves(NamedTuple):
    """The plots of an IoU type."""

    label: str
    overall: Markup
    worst: list[ClassCurve]


class ErrorBar(NamedTuple):
    """An error type: what mending all of them would add to AP, how often it occurs, the bar's length of 0 to 1."""

    label: str
    meaning: str
    gain: Number
    number: Number
    length: float


def books(images: Mapping[str, int]) -> list[ImageShare]:
    """The images of the ground truth by what became of them; parts without an image are left out."""
    kinds = {"annotated": "annotated", "failed": "failed", "without_result": "without result"}
    total = max(1, images.get("ground_truth", 0))
    counts = [(kind, label, images.get(kind) or 0) for kind, label in kinds.items()]
    return [ImageShare(kind, label, number, number / total) for kind, label, number in counts if number]


def headlines(summary: Mapping[str, Mapping[str, Any]], max_dets: Sequence[int]) -> list[Headline]:
    """One for each IoU type, masks first: the AP, and the most telling of COCO's other numbers."""
    labels = ["AP50", "AP75", "AP small", "AP medium", "AP large", *(f"AR@{n}" for n in max_dets)]
    return [
        Headline(label, summary[kind]["stats"][0], list(zip(labels, summary[kind]["stats"][1:], strict=False)))
        for kind, label in IOU_LABELS.items()
        if kind in summary
    ]


def stat_rows(summary: Mapping[str, Mapping[str, Any]], max_dets: Sequence[int]) -> list[StatRow]:
    """COCO's 12 numbers with what they mean.

    Raises:
        ValueError: not 12 of them.
    """
    kinds = [kind for kind in IOU_LABELS if kind in summary]
    if not kinds:
        return []
    names = summary[kinds[0]]["names"]
    most = f"at most {max_dets[-1]} detections"
    meanings = [
        "mean over IoU 0.50 to 0.95",
        "at IoU 0.50",
        "at IoU 0.75",
        *_SIZES,
        *(f"at most {limit} detection{'s'[: limit > 1]} a class and image" for limit in max_dets),
        *(f"{size}; {most}" for size in _SIZES),
    ]
    columns = [summary[kind]["stats"] for kind in kinds]
    return [
        StatRow(name, meaning, list(values)) for name, meaning, *values in zip(names, meanings, *columns, strict=True)
    ]


def worst_first(rows: Sequence[Mapping[str, Any]], key: str = "AP") -> list[Mapping[str, Any]]:
    """Ascending; those without the number (classes without an object) last."""
    return sorted(rows, key=lambda row: (defined_ratio(row[key]) is None, row[key] or 0))


def curves(metrics: Mapping[str, Any], kind: str) -> PrCurves:
    """The plots of an IoU type: overall, and for the classes of the lowest AP."""
    section = metrics["curves"][kind]
    recall = section["recall"]
    by_name = {curve["name"]: curve for curve in section.get("per_class", ())}
    rows = worst_first(metrics.get("per_class", {}).get(kind, ()))
    measured = [row for row in rows if row["name"] in by_name and defined_ratio(row["AP"]) is not None]
    return PrCurves(
        IOU_LABELS[kind],
        recall_precision(recall, _lines(section["overall"])),
        [
            ClassCurve(row["name"], row["AP"], recall_precision(recall, _lines(by_name[row["name"]]), small=True))
            for row in measured[:WORST_CURVES]
        ],
    )


def _lines(curve: Mapping[str, Any]) -> dict[str, Any]:
    names = {"0.50": "0.50", "0.75": "0.75", "0.50:0.95": "0.50 to 0.95 (mean)"}
    return {label: curve[name] for name, label in names.items() if name in curve}


def error_bars(errors: Mapping[str, Any]) -> list[ErrorBar]:
    """One for each error type, in TIDE's order."""
    gains = errors["dAP"]
    longest = max((gain for gain in gains.values() if is_defined(gain)), default=0) or 1
    return [
        ErrorBar(label, meaning, gains[key], errors["counts"][key], max(0.0, (gains[key] or 0) / longest))
        for key, (label, meaning) in ERROR_TYPES.items()
    ]


def error_rows(errors: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Classes by their number of errors, most first."""
    return sorted(errors.get("per_class", ()), key=lambda row: -sum(row["counts"].values()))


def calibration_plot(calibration: Mapping[str, Any]) -> Markup:
    """The reliability diagram of all classes together."""
    overall = calibration["overall"]
    return reliability(calibration["bin_edges"], overall["count"], overall["mean_score"], overall["precision"])


def calibration_rows(calibration: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Classes by their calibration error, largest first; those without detections last."""
    rows = calibration.get("per_class", ())
    return sorted(rows, key=lambda row: (not is_defined(row["ece"]), -(row["ece"] or 0)))


# What the templates of the sections call.
VIEWS: dict[str, Any] = {
    "iou_labels": IOU_LABELS,
    "confusion_view": confusion_view,
    "error_types": ERROR_TYPES,
    "error_bars": error_bars,
    "error_rows": error_rows,
    "calibration_plot": calibration_plot,
    "calibration_rows": calibration_rows,
}
