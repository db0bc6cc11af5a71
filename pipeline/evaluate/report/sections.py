"""From the metrics of an evaluation to what the page's sections show: chosen, sorted, named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from pipeline.page.numbers import Number, defined_ratio, is_defined
from pipeline.page.plots import recall_precision, reliability

WORST_CURVES = 12
MOST_CLASSES = 30
MOST_PAIRS = 20
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


@dataclass(frozen=True)
class Cell:
    """Of the heat map.

    Attributes:
        number: objects of the row's class that were detected as the column's.
        share: of all the objects of the row's class, 0 to 1.
        diagonal: the two classes are the same.
    """

    number: int
    share: float
    diagonal: bool

    @property
    def text(self) -> str:
        """Percent; nothing below one half."""
        return f"{100 * self.share:.0f}" if self.share >= 0.005 else ""


@dataclass(frozen=True)
class Pair:
    """Two different classes: ``number`` objects of one, a ``share`` of its objects, were detected as the other."""

    truth: str
    detected: str
    number: int
    share: float


@dataclass(frozen=True)
class Confusion:
    """What is shown.

    Attributes:
        labels: of rows and columns, the background last.
        rows: of cells; a row is a class of the ground truth, a column what was detected.
        num_classes: there are in all, the background not counted.
        pairs: of different classes, the most frequent first.
    """

    labels: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    num_classes: int
    pairs: tuple[Pair, ...]

    @property
    def is_part(self) -> bool:
        """Whether classes are left out of the heat map."""
        return len(self.labels) - 1 < self.num_classes


def confusion_view(section: Mapping[str, Any]) -> Confusion:
    """Choose the most confused classes and pairs.

    Args:
        section: ``labels`` with the background last, and ``matrix``, whose rows are ground truth.

    Raises:
        ValueError: the matrix is not as large as the labels say.
    """
    labels: Sequence[str] = section["labels"]
    matrix = np.asarray(section["matrix"], np.int64)
    if matrix.shape != (len(labels), len(labels)):
        raise ValueError(f"a confusion matrix of {matrix.shape} for {len(labels)} labels")
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    shown = _most_confused(matrix)
    rows = tuple(tuple(Cell(int(matrix[i, j]), float(shares[i, j]), i == j) for j in shown) for i in shown)
    return Confusion(tuple(labels[i] for i in shown), rows, len(labels) - 1, _pairs(labels, matrix, shares))


def _most_confused(matrix: np.ndarray) -> list[int]:
    """Classes in their order, and the background; those with most mistakes between classes if there are many."""
    background = len(matrix) - 1
    wrong = _between_classes(matrix)
    mistakes = wrong.sum(axis=0) + wrong.sum(axis=1)
    return [*sorted(np.argsort(-mistakes, kind="stable")[:MOST_CLASSES].tolist()), background]


def _pairs(labels: Sequence[str], matrix: np.ndarray, shares: np.ndarray) -> tuple[Pair, ...]:
    wrong = _between_classes(matrix)
    order = np.argsort(-wrong, axis=None, kind="stable")[:MOST_PAIRS]
    places = [divmod(int(place), len(wrong)) for place in order]
    return tuple(
        Pair(labels[i], labels[j], int(matrix[i, j]), float(shares[i, j])) for i, j in places if wrong[i, j] > 0
    )


def _between_classes(matrix: np.ndarray) -> np.ndarray:
    """Without the background and without what is right."""
    wrong = matrix[:-1, :-1].copy()
    np.fill_diagonal(wrong, 0)
    return wrong


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
