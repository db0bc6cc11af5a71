"""Counts of stages add up."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields

from pipeline.annotate.stages.stage import StageCounts


def test_every_figure_is_added() -> None:
    figures = {f.name: float(i + 1) for i, f in enumerate(fields(StageCounts)) if f.name != "failed"}
    counts = StageCounts(**figures, failed=Counter(not_found=2, timeout=1))  # type: ignore[arg-type]
    twice = {name: 2 * value for name, value in figures.items()}
    other = StageCounts(**figures, failed=Counter(not_found=1, bad_mask=4))  # type: ignore[arg-type]
    assert counts + other == StageCounts(**twice, failed=Counter(not_found=3, timeout=1, bad_mask=4))  # type: ignore[arg-type]


def test_nothing_is_the_start_of_a_sum() -> None:
    counts = [StageCounts(encoded=3, failed=Counter(not_found=1)), StageCounts(encoded=4, encode_s=0.5)]
    assert sum(counts, StageCounts()) == StageCounts(encoded=7, encode_s=0.5, failed=Counter(not_found=1))
    assert sum([], StageCounts()) == StageCounts()
