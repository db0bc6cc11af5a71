"""Thresholds by hand, against trying every score, and their intervals against published numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.metrics.analysis.thresholds import ClassThreshold, ThresholdTracker, wilson_interval
from tests.metrics.record_cases import Detection, chunked, records_of


def _tracked(wanted: float, num_objects: int, *chunks: list[Detection]) -> ClassThreshold:
    tracker = ThresholdTracker(wanted, num_objects)
    for chunk in chunks:
        tracker.update(records_of(chunk))
    return tracker.result()


def _found(text: str) -> list[Detection]:
    """``9t 8f`` -> right at 0.9, wrong at 0.8."""
    return [(int(word[:-1]) / 10, word[-1]) for word in text.split()]


# Detections, wanted precision, threshold, labels kept.
CASES = {
    "all right": ("9t 8t", 0.9, 0.8, 2),
    "precision recovers later": ("9f 8t 7t 6t", 0.75, 0.6, 4),
    "exactly reached": ("9t 8t 7t 6f", 0.75, 0.6, 4),
    "just missed": ("9t 8t 7t 6f 5f", 0.75, 0.6, 4),
    "a tie stays together": ("9t 8t 8f 8f", 0.6, 0.9, 1),
    "a tie that reaches it as a whole": ("9f 8t 8t 8t", 0.75, 0.8, 4),
    "ignored ones do not count": ("9t 8i 7t 6i", 1.0, 0.7, 2),
    "never": ("9f 8t", 0.9, None, 0),
    "nothing found": ("", 0.5, None, 0),
    "only ignored": ("9i", 0.5, None, 0),
}


@pytest.mark.parametrize("name", CASES)
def test_threshold(name: str) -> None:
    text, wanted, threshold, labels = CASES[name]
    result = _tracked(wanted, 10, _found(text))
    assert (result.threshold, result.labels, result.objects) == (threshold, labels, 10)
    assert (result.precision is None) == (result.recall is None) == (threshold is None)


def test_what_it_comes_with() -> None:
    result = _tracked(0.75, 8, _found("9t 8t 7f 6t 5f 4f"))
    assert result.threshold == 0.6
    assert result.precision == wilson_interval(3, 4)
    assert result.recall == wilson_interval(3, 8)
    # F1 = 2 tp / (labels + objects): 2/9, 4/10, 4/11, 6/12 ...
    assert (result.best_f1, result.best_f1_threshold) == (0.5, 0.6)


def test_the_first_of_equal_f1() -> None:
    result = _tracked(0.5, 2, _found("9t 8f 7f 6f 5t 4f"))
    assert (result.best_f1, result.best_f1_threshold) == (pytest.approx(2 / 3), 0.9)


def test_category_without_objects() -> None:
    result = _tracked(0.5, 0, _found("9f 8f"))
    assert result == ClassThreshold(None, None, None, 0, 0, None, None)


@pytest.mark.parametrize("wanted", [0, -0.1, 1.01, float("nan")])
def test_impossible_precision(wanted: float) -> None:
    with pytest.raises(ValueError, match="wanted precision"):
        ThresholdTracker(wanted, 1)


@settings(max_examples=150, deadline=None)
@given(chunked(), st.sampled_from([0.1, 1 / 3, 0.5, 0.6, 0.75, 0.9, 1.0]), st.integers(0, 5))
def test_chunks_and_every_possible_threshold(
    case: tuple[list[Detection], list[list[Detection]]], wanted: float, more_objects: int
) -> None:
    """In chunks, cut anywhere in a tie, it finds what trying each score finds."""
    detections, chunks = case
    num_objects = sum(kind == "t" for _, kind in detections) + more_objects
    result = _tracked(wanted, num_objects, *chunks)
    kept = {t: [k for s, k in detections if s >= t and k != "i"] for t in {s for s, k in detections if k != "i"}}
    good = [t for t, kinds in kept.items() if kinds.count("t") / len(kinds) >= wanted]
    assert result.threshold == min(good, default=None)
    if result.threshold is not None:
        assert result.labels == len(kept[result.threshold])
        assert result.precision is not None
        assert result.precision.value >= wanted
    f1 = {t: 2 * kinds.count("t") / (len(kinds) + num_objects) for t, kinds in kept.items()}
    best = max(f1.values(), default=0)
    assert result.best_f1 == (best or None)
    assert result.best_f1_threshold == (max(t for t in f1 if f1[t] == best) if best else None)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    # Newcombe, "Two-sided confidence intervals for the single proportion", Statistics in Medicine 1998, table I.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson(successes: int, trials: int, low: float, high: float) -> None:
    share = wilson_interval(successes, trials)
    assert share.value == successes / trials
    assert (round(share.low, 4), round(share.high, 4)) == (low, high)


def test_wilson_at_the_ends() -> None:
    for trials in range(1, 200):
        assert wilson_interval(0, trials).low == 0
        assert wilson_interval(trials, trials).high == 1
        assert np.isclose(wilson_interval(0, trials).high, 1 - wilson_interval(trials, trials).low)
