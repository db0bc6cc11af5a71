"""Reliability by hand, and against numpy's histogram."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings

from pipeline.metrics.analysis.calibration import BIN_EDGES, NUM_BINS, Calibration, CalibrationCounter
from tests.metrics.record_cases import Detection, chunked, records_of


def _counted(*chunks: list[Detection]) -> Calibration:
    counter = CalibrationCounter()
    for chunk in chunks:
        counter.update(records_of(chunk))
    return counter.result()


def test_by_hand() -> None:
    calibration = _counted([(0.92, "t"), (0.94, "f"), (0.91, "i"), (0.12, "f")])
    assert calibration.counts.nonzero()[0].tolist() == [2, 18]
    assert calibration.counts[[2, 18]].tolist() == [1, 2]
    assert calibration.precisions[[2, 18]].tolist() == [0, 0.5]
    assert calibration.mean_scores[[2, 18]] == pytest.approx([0.12, 0.93])
    assert np.isnan(calibration.precisions[0])
    assert np.isnan(calibration.mean_scores[0])
    assert calibration.expected_error == pytest.approx((2 * abs(0.93 - 0.5) + 0.12) / 3)


@pytest.mark.parametrize(("score", "wanted"), [(0.0, 0), (0.05, 1), (0.35, 7), (1.0, 19), (1.5, 19), (-0.5, 0)])
def test_edges(score: float, wanted: int) -> None:
    assert _counted([(score, "t")]).counts.argmax() == wanted


def test_perfectly_calibrated() -> None:
    scores = [0.75] * 3 + [0.75]
    assert _counted(list(zip(scores, "ttft", strict=True))).expected_error == 0


def test_nothing() -> None:
    assert _counted().expected_error is None
    assert _counted([(0.5, "i")]).counts.tolist() == [0] * NUM_BINS


@settings(max_examples=60, deadline=None)
@given(chunked())
def test_chunks_change_no_bit_and_numpy_agrees(case: tuple[list[Detection], list[list[Detection]]]) -> None:
    detections, chunks = case
    whole, parts = _counted(detections), _counted(*chunks)
    for name in ("counts", "num_true", "score_sums"):
        assert getattr(parts, name).tolist() == getattr(whole, name).tolist()
    scores = [score for score, kind in detections if kind != "i"]
    assert np.histogram(scores, BIN_EDGES)[0].tolist() == whole.counts.tolist()
    assert whole.score_sums == pytest.approx(np.histogram(scores, BIN_EDGES, weights=scores)[0])
    total = Calibration.of_all([_counted(chunk) for chunk in chunks])
    assert total.counts.tolist() == whole.counts.tolist()
    assert total.num_true.sum() == sum(kind == "t" for _, kind in detections)
    assert total.expected_error == pytest.approx(whole.expected_error)
