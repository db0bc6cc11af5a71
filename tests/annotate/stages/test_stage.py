"""Counts of stages add up."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields

from pipeline.annotate.stages.stage import FIRST_FAILED, StageCounts


def test_every_figure_is_added() -> None:
    names = [f.name for f in fields(StageCounts) if f.name not in ("failed", "first_failed")]
    figures = {name: float(i + 1) for i, name in enumerate(names)}
    counts = StageCounts(**figures, failed=Counter(not_found=2, timeout=1))  # type: ignore[arg-type]
    twice = {name: 2 * value for name, value in figures.items()}
    other = StageCounts(**figures, failed=Counter(not_found=1, bad_mask=4))  # type: ignore[arg-type]
    assert counts + other == StageCounts(**twice, failed=Counter(not_found=3, timeout=1, bad_mask=4))  # type: ignore[arg-type]


def test_nothing_is_the_start_of_a_sum() -> None:
    counts = [StageCounts(encoded=3, failed=Counter(not_found=1)), StageCounts(encoded=4, encode_s=0.5)]
    assert sum(counts, StageCounts()) == StageCounts(encoded=7, encode_s=0.5, failed=Counter(not_found=1))
    assert sum([], StageCounts()) == StageCounts()


def test_of_the_failed_ones_the_first_are_kept_and_each_once() -> None:
    parts = [StageCounts(first_failed=(f"{i // 2}: timeout: slow",)) for i in range(20)]
    assert sum(parts, StageCounts()).first_failed == tuple(f"{i}: timeout: slow" for i in range(FIRST_FAILED))
