from __future__ import annotations

import numpy as np
import pytest

from pipeline.synthetic.shapes import CLASSES, Placed, shape_at

SIZE = (200, 240)
RADIUS = 60.0
NAMES = tuple(CLASSES)


def _centred(name: str, turn: float = 0.0) -> Placed:
    return shape_at(NAMES.index(name), np.array([100.0, 120.0]), RADIUS, turn, SIZE)


def _edge(inner: float) -> float:
    """Area of a five-pointed star of radius 1 whose notches have this radius: ten triangles."""
    return 5 * inner * np.sin(np.pi / 5)


AREAS = {
    "ball": np.pi,
    "ring": np.pi * (1 - 0.5**2),
    "brick": 4 * 0.88 * 0.46,
    "star": _edge(0.45),
    # Two segments of discs of radius 1.25 (offset 0.75, half chord 1).
    "leaf": 2 * (1.25**2 * np.arccos(0.6) - 0.75),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("turn", [0.0, 0.7])
def test_areas_are_those_of_geometry(name: str, turn: float) -> None:
    area = np.count_nonzero(_centred(name, turn).mask(SIZE))
    assert area == pytest.approx(AREAS[name] * RADIUS**2, rel=0.02)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_lies_beyond_the_radius_and_something_reaches_it(name: str) -> None:
    rows, columns = np.nonzero(_centred(name, 0.3).mask(SIZE))
    reach = np.hypot(rows + 0.5 - 100, columns + 0.5 - 120).max()
    assert RADIUS - 2 < reach <= RADIUS + 0.5


@pytest.mark.parametrize("name", NAMES)
def test_the_field_is_about_the_distance_in_pixels_near_the_edge(name: str) -> None:
    """So that edges are one pixel of partial cover wide."""
    field = _centred(name, 0.3).field
    slopes = np.hypot(*np.gradient(field))[np.abs(field) < 1]
    assert 0.85 < np.median(slopes) < 1.15


def test_only_the_ring_has_a_hole() -> None:
    assert [name for name in NAMES if not _centred(name).mask(SIZE)[100, 120]] == ["ring"]


def test_what_lies_beyond_the_canvas_is_cut() -> None:
    placed = shape_at(0, np.array([0.0, 0.0]), RADIUS, 0.0, SIZE)
    assert (placed.top, placed.left) == (0, 0)
    assert np.count_nonzero(placed.mask(SIZE)) == pytest.approx(np.pi * RADIUS**2 / 4, rel=0.02)
