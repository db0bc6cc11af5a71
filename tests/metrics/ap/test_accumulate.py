from __future__ import annotations

import contextlib
import io
import pickle
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pycocotools.cocoeval import COCOeval

from pipeline.metrics.ap import accumulate
from pipeline.metrics.ap.accumulate import Accumulator, CategoryResult
from pipeline.metrics.ap.records import Records, record_dtype, sort_order
from pipeline.metrics.protocol import RECALL_THRESHOLDS


def random_records(
    rng: np.random.Generator, num_images: int, most: int, num_ranges: int, num_thresholds: int
) -> Records:
    """Sorted; ``tp`` and ``fp`` any patterns without a common bit, scores that tie within and between images."""
    ranks = np.concatenate([np.arange(rng.integers(0, most + 1)) for _ in range(num_images)])
    records = np.zeros(len(ranks), record_dtype(num_ranges))
    records["rank"], records["image"] = ranks, np.cumsum(ranks == 0)
    for image in np.unique(records["image"]):
        own = records["image"] == image
        records["score"][own] = np.sort(rng.integers(0, 9, own.sum()) / 8)[::-1]
    shape = (len(ranks), num_ranges, num_thresholds)
    outcome = rng.choice([0, 1, 2], shape, p=[0.2, 0.4, 0.4])
    outcome[rng.random(shape[:2]) < 0.5] = 2  # most detections are false at every threshold
    for name, code in (("tp", 1), ("fp", 2)):
        records[name] = (outcome == code) @ (1 << np.arange(num_thresholds))
    return records[sort_order(records)]


def by_pycocotools(
    records: Records, num_objects: Sequence[int], num_thresholds: int, max_dets: Sequence[int]
) -> CategoryResult:
    """``COCOeval.accumulate`` on cells with the same outcomes; a last image holds the objects."""
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(iouType="bbox")
    images = np.unique(records["image"]).tolist()
    params = evaluation.params
    params.iouThrs = np.arange(num_thresholds)
    params.areaRng = [[a, a] for a in range(len(num_objects))]
    params.maxDets, params.imgIds, params.catIds = list(max_dets), [*images, -1], [1]
    evaluation._paramsEval = params
    evaluation.evalImgs = []
    for a, count in enumerate(num_objects):
        for image in images:
            own = records[records["image"] == image]
            own = own[np.argsort(own["rank"])]
            tp, fp = (own[name][:, a] >> np.arange(num_thresholds)[:, None] & 1 for name in ("tp", "fp"))
            evaluation.evalImgs.append(cell(own["score"], tp, tp + fp == 0))
        evaluation.evalImgs.append(cell(np.empty(0), *np.zeros((2, num_thresholds, 0)), num_objects=count))
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.accumulate()
    arrays = evaluation.eval
    return CategoryResult(arrays["precision"][:, :, 0], arrays["recall"][:, 0], arrays["scores"][:, :, 0])


def cell(scores: NDArray, matched: NDArray, ignored: NDArray, num_objects: int = 0) -> dict[str, NDArray]:
    return {"dtScores": scores, "dtMatches": matched, "dtIgnore": ignored, "gtIgnore": np.zeros(num_objects)}


def accumulated(
    records: Records, num_objects: Sequence[int], num_thresholds: int, max_dets: Sequence[int], cuts: Sequence[int] = ()
) -> CategoryResult:
    accumulator = Accumulator(np.array(num_objects), num_thresholds, max_dets)
    for part in np.split(records, sorted(cuts)):
        accumulator.update(part)
    return accumulator.result()


def assert_equal(got: CategoryResult, expected: CategoryResult) -> None:
    for name in ("precision", "recall", "scores"):
        np.testing.assert_array_equal(getattr(got, name), getattr(expected, name), err_msg=name)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    num_images=st.integers(0, 6),
    most=st.sampled_from([1, 4, 12]),
    num_objects=st.lists(st.sampled_from([0, 1, 2, 3, 7, 50, 100, 300, 1001]), min_size=1, max_size=5),
    num_thresholds=st.sampled_from([1, 2, 10, 16]),
    max_dets=st.sampled_from([(100,), (1, 3, 100), (1, 2, 3)]),
)
def test_equals_pycocotools(seed, num_images, most, num_objects, num_thresholds, max_dets):
    rng = np.random.default_rng(seed)
    records = random_records(rng, num_images + 1, most, len(num_objects), num_thresholds)
    expected = by_pycocotools(records, num_objects, num_thresholds, max_dets)
    assert_equal(accumulated(records, num_objects, num_thresholds, max_dets), expected)
    cuts = rng.integers(0, len(records) + 1, 4).tolist()
    assert_equal(accumulated(records, num_objects, num_thresholds, max_dets, cuts), expected)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 13, 40, 1000])
def test_chunks_of_every_size(size):
    records = random_records(np.random.default_rng(7), 12, 9, 4, 10)
    cuts = range(size, len(records), size)
    expected = by_pycocotools(records, [25, 0, 9, 3], 10, (1, 3, 100))
    assert_equal(accumulated(records, [25, 0, 9, 3], 10, (1, 3, 100), cuts), expected)


def test_an_update_is_cut_into_chunks(monkeypatch):
    records = random_records(np.random.default_rng(8), 12, 9, 4, 10)
    expected = accumulated(records, [25, 4, 9, 3], 10, (1, 3, 100))
    monkeypatch.setattr(accumulate, "_CHUNK", 7)
    assert_equal(accumulated(records, [25, 4, 9, 3], 10, (1, 3, 100)), expected)


def test_by_hand():
    # True, false, true of 3 objects: precision 1, 1/2, 2/3; recall 1/3, 1/3, 2/3.
    records = np.zeros(3, record_dtype(1))
    records["score"], records["image"] = [0.9, 0.8, 0.7], [0, 1, 2]
    records["tp"][:, 0], records["fp"][:, 0] = [1, 0, 1], [0, 1, 0]
    result = accumulated(records, [3], 1, [100])
    expected = np.where(RECALL_THRESHOLDS <= 1 / 3, 1.0, np.where(RECALL_THRESHOLDS <= 2 / 3, 2 / 3, 0))
    np.testing.assert_allclose(result.precision[0, :, 0, 0], expected, rtol=1e-15)
    np.testing.assert_array_equal(result.scores[0, [0, 33, 34, 66, 67], 0, 0], [0.9, 0.9, 0.7, 0.7, 0])
    assert result.recall.tolist() == [[[2 / 3]]]


def test_no_detections_and_no_objects():
    result = accumulated(np.empty(0, record_dtype(2)), [5, 0], 10, (1, 10, 100))
    assert (result.precision.shape, result.recall.shape) == ((10, 101, 2, 3), (10, 2, 3))
    for values in (result.precision[:, :, 0], result.recall[:, 0], result.scores[:, :, 0]):
        assert (values == 0).all()
    for values in (result.precision[:, :, 1], result.recall[:, 1], result.scores[:, :, 1]):
        assert (values == -1).all()


def test_state_does_not_grow():
    records = random_records(np.random.default_rng(9), 20, 9, 4, 10)
    accumulator = Accumulator(np.array([90, 4, 9, 3]), 10, (1, 10, 100))
    accumulator.update(records)
    size = len(pickle.dumps(accumulator))
    for _ in range(20):
        accumulator.update(records)
    assert len(pickle.dumps(accumulator)) == size


def test_fewest_true_positives_for_each_recall():
    num_objects = np.array([*range(1, 400), 65_537, 262_465, 10**7 + 19, 2**40 + 1])
    counts = accumulate._counts_reaching(num_objects)
    assert (counts / num_objects[:, None] >= RECALL_THRESHOLDS).all()
    assert ((counts - 1) / num_objects[:, None] < RECALL_THRESHOLDS).all()
