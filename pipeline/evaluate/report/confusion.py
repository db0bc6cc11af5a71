"""Which classes are taken for which: the part of the confusion matrix that a page has room for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

MOST_CLASSES = 30
MOST_PAIRS = 20


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
