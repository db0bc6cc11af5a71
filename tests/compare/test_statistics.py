"""Distances and tests, against their formulas written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from pipeline.compare.statistics import SMOOTHING, benjamini_hochberg, js_distance, psi, two_proportions

COUNTS = st_numpy.arrays(np.float64, 5, elements=st.integers(0, 1000).map(float))


def shares(counts: np.ndarray) -> list[float]:
    return [value / counts.sum() for value in counts]


@given(COUNTS, COUNTS)
def test_by_their_formulas(before: np.ndarray, after: np.ndarray) -> None:
    if not before.sum() or not after.sum():
        assert np.isnan(psi(before, after))
        assert np.isnan(js_distance(before, after))
        return
    added = SMOOTHING / min(before.sum(), after.sum())
    smoothed = [shares(np.array(shares(each)) + added) for each in (before, after)]
    pairs = zip(*smoothed, strict=True)
    assert psi(before, after) == pytest.approx(sum((p - q) * math.log(p / q) for p, q in pairs), abs=1e-12)
    p, q = shares(before), shares(after)
    middle = [(a + b) / 2 for a, b in zip(p, q, strict=True)]

    def divergence(left: list[float]) -> float:
        return sum(a * math.log2(a / m) for a, m in zip(left, middle, strict=True) if a)

    expected = math.sqrt(max(0.0, (divergence(p) + divergence(q)) / 2))
    assert js_distance(before, after) == pytest.approx(expected, abs=1e-6)
    assert js_distance(before, after) == pytest.approx(js_distance(after, before))
    assert psi(before, after) == pytest.approx(psi(after, before))
    assert 0 <= js_distance(before, after) <= 1


@given(COUNTS)
def test_equal_sides_differ_by_nothing(counts: np.ndarray) -> None:
    if counts.sum():
        assert psi(counts, counts) == 0
        assert js_distance(counts, counts) == pytest.approx(0, abs=1e-7)


@given(COUNTS, st.integers(1, 1000))
def test_equal_shares_differ_by_nothing(counts: np.ndarray, times: int) -> None:
    """Of 7 pictures and of 700, all of one size."""
    if counts.sum():
        assert psi(counts, counts * times) == pytest.approx(0, abs=1e-9)
        assert js_distance(counts, counts * times) == pytest.approx(0, abs=1e-6)


def test_nothing_in_common() -> None:
    assert js_distance(np.array([1.0, 0]), np.array([0, 3.0])) == 1


def test_two_proportions() -> None:
    # By hand: pooled 0.15, z = 0.1 / sqrt(0.15 * 0.85 * 0.02) = 1.980.
    (found,) = two_proportions(np.array([20.0]), 100, np.array([10.0]), 100)
    assert found == pytest.approx(math.erfc(0.1 / math.sqrt(0.15 * 0.85 * 0.02) / math.sqrt(2)))
    assert found == pytest.approx(0.0477, abs=1e-4)
    assert two_proportions(np.array([5.0, 0, 7]), 7, np.array([5.0, 0, 7]), 7).tolist() == [1, 1, 1]
    assert two_proportions(np.array([0.0]), 0, np.array([1.0]), 7).tolist() == [1]


def test_benjamini_hochberg() -> None:
    # The example of their paper's table 1: the fourth value is the last at 5 %.
    p = np.array(
        [
            0.0001,
            0.0004,
            0.0019,
            0.0095,
            0.0201,
            0.0278,
            0.0298,
            0.0344,
            0.0459,
            0.3240,
            0.4262,
            0.5719,
            0.6528,
            0.7590,
            1,
        ]
    )
    found = benjamini_hochberg(p)
    assert (found <= 0.05).sum() == 4
    assert found[:4] == pytest.approx([0.0015, 0.003, 0.0095, 0.035625])
    shuffled = np.random.default_rng(0).permutation(15)
    assert benjamini_hochberg(p[shuffled]) == pytest.approx(found[shuffled])
