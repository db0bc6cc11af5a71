"""The worst and the best images of each category, picked from any number of images in bounded memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.metrics.analysis.image_quality import QUALITY, Qualities
from pipeline.tables.arrays import Bools, Float64s, Int64s

MIDDLE = 0.5


@dataclass(frozen=True)
class CategoryImages:
    """Rows of `QUALITY` of one category, the most extreme first; no image is in both."""

    worst: Qualities
    best: Qualities


class TopImages:
    """Keeps the worst n and the best n images of each category.

    Of equally bad images the one with more mistakes comes first. Among the best, many objects found well say more
    than a single one found perfectly: they are ordered by the quality that they would have with one more false
    detection. What is still equal is ordered by image, so nothing depends on the order of the blocks.
    """

    def __init__(self, per_category: int) -> None:
        self.per_category = per_category
        self._worst = self._best = np.empty(0, QUALITY)

    def update(self, rows: Qualities) -> None:
        """Take in the images of a block; none may come twice."""
        self._pick(rows, rows)

    def merge(self, other: TopImages) -> None:
        """Take in what another has kept of other images."""
        self._pick(other._worst, other._best)

    def image_orders(self) -> set[int]:
        """``image_order`` of all images that are kept."""
        return {*self._worst["image_order"].tolist(), *self._best["image_order"].tolist()}

    def result(self, num_categories: int) -> list[CategoryImages]:
        """Those of each category; an image that is among its worst and its best is among the nearer ones only."""
        worst = self._worst[(self._worst["quality"] < MIDDLE) | ~_is_in(self._worst, self._best)]
        best = self._best[(self._best["quality"] >= MIDDLE) | ~_is_in(self._best, self._worst)]
        return [
            CategoryImages(worst[worst["category"] == category], best[best["category"] == category])
            for category in range(num_categories)
        ]

    def _pick(self, bad: Qualities, good: Qualities) -> None:
        worst, best = np.concatenate([self._worst, bad]), np.concatenate([self._best, good])
        mistakes = worst["num_false"] + worst["num_missed"]
        self._worst = self._first(worst, worst["quality"], -mistakes)
        self._best = self._first(best, -_cautious_quality(best), -best["num_true"])

    def _first(self, rows: Qualities, key: Float64s, second_key: Int64s) -> Qualities:
        """The rows of the smallest keys of each category, by category."""
        order = np.lexsort((rows["image_order"], second_key, key, rows["category"]))
        categories = rows["category"][order]
        ranks = np.arange(len(order)) - np.searchsorted(categories, categories)
        return rows[order[ranks < self.per_category]]


def _cautious_quality(rows: Qualities) -> Float64s:
    weight = rows["num_true"] + (rows["num_false"] + rows["num_missed"]) / 2
    return rows["quality"] * weight / (weight + 0.5)


def _is_in(rows: Qualities, others: Qualities) -> Bools:
    known = set(zip(others["category"].tolist(), others["image_order"].tolist(), strict=True))
    cells = zip(rows["category"].tolist(), rows["image_order"].tolist(), strict=True)
    return np.array([cell in known for cell in cells], np.bool_)
