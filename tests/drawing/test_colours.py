from __future__ import annotations

import itertools

import pytest

from pipeline.drawing.colours import Colour, category_colour, readable_on
from pipeline.model.categories import COCO_CATEGORIES


def luminance(colour: Colour) -> float:
    linear = [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: Colour, other: Colour) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_stable() -> None:
    """Pictures of different runs are compared side by side: these values must not drift."""
    assert [category_colour(i) for i in (1, 2, 3)] == [(1, 169, 248), (206, 190, 25), (184, 92, 189)]


def test_all_of_coco_differ() -> None:
    colours = [category_colour(category.id) for category in COCO_CATEGORIES]
    assert len(set(colours)) == len(colours)


@pytest.mark.parametrize("first", [0, 1, 13, 77])
def test_successive_ids_lie_far_apart(first: int) -> None:
    colours = [category_colour(first + i) for i in range(6)]
    assert min(sum(abs(a - b) for a, b in zip(*pair, strict=True)) for pair in itertools.combinations(colours, 2)) > 60


def test_text_is_readable_on_every_colour() -> None:
    for category_id in range(1000):
        colour = category_colour(category_id)
        assert all(0 <= channel <= 255 for channel in colour)
        assert contrast(colour, readable_on(colour)) >= 4.5  # WCAG AA


def test_readable_on_the_extremes() -> None:
    assert luminance(readable_on((255, 255, 255))) < 0.05
    assert luminance(readable_on((0, 0, 0))) == pytest.approx(1)


@pytest.mark.parametrize("category_id", [-1, 0, 10**12])
def test_any_id_has_a_colour(category_id: int) -> None:
    assert len(category_colour(category_id)) == 3
