"""Which images are picked, and that it does not matter how they come in."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.metrics.analysis.image_quality import QUALITY, Qualities
from pipeline.metrics.analysis.top_images import CategoryImages, TopImages

Row = tuple[int, int, float, int, int, int]  # category, image, quality, true, false, missed


def _rows(rows: Sequence[Row]) -> Qualities:
    return np.array([(c, image, f"id {image}", *rest) for c, image, *rest in rows], QUALITY)


def _picked(rows: Sequence[Row], per_category: int = 2) -> CategoryImages:
    top = TopImages(per_category)
    top.update(_rows(rows))
    return top.result(1)[0]


def _images(rows: Qualities) -> list[int]:
    return rows["image_order"].tolist()


CASES: dict[str, tuple[list[Row], list[int], list[int]]] = {
    "by quality": ([(0, n, n / 10, 2, 1, 1) for n in range(1, 10)], [1, 2], [9, 8]),
    "equally bad: the most mistakes": ([(0, 1, 0, 0, 0, 1), (0, 2, 0, 0, 3, 1), (0, 3, 0, 0, 0, 2)], [2, 3], [1]),
    "many found well before one found perfectly": ([(0, 1, 1.0, 1, 0, 0), (0, 2, 0.9, 9, 0, 0)], [], [2, 1]),
    "but not many found badly": ([(0, 1, 0.95, 1, 0, 0), (0, 2, 0.6, 30, 10, 10)], [], [1, 2]),
    "all equal: by image": ([(0, n, 0.25, 1, 1, 1) for n in (4, 3, 2, 1)], [1, 2], []),
    "bad ones are no best": ([(0, 1, 0.1, 1, 5, 5)], [1], []),
    "good ones are no worst": ([(0, 1, 0.9, 1, 0, 0)], [], [1]),
    "none": ([], [], []),
}


@pytest.mark.parametrize("name", CASES)
def test_picks(name: str) -> None:
    rows, worst, best = CASES[name]
    picked = _picked(rows)
    assert (_images(picked.worst), _images(picked.best)) == (worst, best)


def test_categories_do_not_mix() -> None:
    top = TopImages(1)
    top.update(_rows([(2, 1, 0.9, 1, 0, 0), (0, 1, 0.2, 1, 4, 4), (2, 2, 0.1, 1, 9, 9)]))
    picked = top.result(3)
    assert [(_images(p.worst), _images(p.best)) for p in picked] == [([1], []), ([], []), ([2], [1])]
    assert picked[2].worst["image_id"].tolist() == ["id 2"]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 1),
            st.integers(0, 30),
            st.sampled_from([0, 0.2, 0.5, 0.9, 1.0]),
            st.integers(0, 3),
            st.integers(0, 2),
            st.integers(1, 2),
        ),
        max_size=40,
        unique_by=lambda row: row[:2],
    ),
    st.randoms(use_true_random=False),
)
def test_the_way_in_does_not_matter(rows: list[Row], random: np.random.Generator) -> None:
    """Blocks in any order, kept by several and merged; and what is kept stays small."""
    together = TopImages(3)
    together.update(_rows(rows))
    shuffled = list(rows)
    random.shuffle(shuffled)  # type: ignore[arg-type]
    kept = [TopImages(3) for _ in range(3)]
    for n, row in enumerate(shuffled):
        kept[n % 3].update(_rows([row]))
    merged = TopImages(3)
    for part in kept:
        assert len(part._worst) <= 6
        assert len(part._best) <= 6
        merged.merge(part)
    for a, b in zip(together.result(2), merged.result(2), strict=True):
        assert a.worst.tolist() == b.worst.tolist()
        assert a.best.tolist() == b.best.tolist()
        assert not set(_images(a.worst)) & set(_images(a.best))
