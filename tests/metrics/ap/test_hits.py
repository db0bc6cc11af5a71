"""Which bit of a record says right or wrong."""

from __future__ import annotations

from pipeline.metrics.ap.hits import scored_hits
from tests.metrics.record_cases import records_of


def test_ignored_detections_are_left_out() -> None:
    scores, hits = scored_hits(records_of([(0.9, "t"), (0.8, "i"), (0.7, "f"), (0.6, "t")]))
    assert scores.tolist() == [0.9, 0.7, 0.6]
    assert hits.tolist() == [True, False, True]


def test_no_records() -> None:
    scores, hits = scored_hits(records_of([]))
    assert len(scores) == len(hits) == 0
