from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from pycocotools.cocoeval import COCOeval

from pipeline.metrics.ap.accumulate import CategoryResult
from pipeline.metrics.ap.figures import Arrays, coco_stats, coco_summary_lines, mmdet_metrics, per_class, stat_names

LIMITS = [(1, 10, 100), (100, 300, 1000), (1, 10, 300), (1, 2, 3)]


def random_arrays(seed: int, num_categories: int = 7) -> Arrays:
    """Values between 0 and 1, and -1 where a category has no objects of a range."""
    rng = np.random.default_rng(seed)
    absent = rng.random((num_categories, 4, 1)) < 0.3
    precision, scores = rng.random((2, 10, 101, num_categories, 4, 3))
    recall = rng.random((10, num_categories, 4, 3))
    return Arrays(*(np.where(absent, -1.0, values) for values in (precision, recall, scores)))


def by_pycocotools(
    arrays: Arrays, max_dets: tuple[int, ...], capsys: pytest.CaptureFixture[str]
) -> tuple[NDArray[np.float64], list[str]]:
    evaluation = COCOeval(iouType="segm")
    evaluation.params.maxDets = list(max_dets)
    evaluation.eval = {"precision": arrays.precision, "recall": arrays.recall}
    capsys.readouterr()
    evaluation.summarize()
    return evaluation.stats, capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("max_dets", LIMITS)
@pytest.mark.parametrize("seed", range(4))
def test_equals_summarize_of_pycocotools(max_dets, seed, capsys):
    arrays = random_arrays(seed)
    expected, lines = by_pycocotools(arrays, max_dets, capsys)
    stats = coco_stats(arrays, max_dets)
    got = coco_summary_lines(stats, max_dets)
    first = 0 if 100 in max_dets else 1
    assert stats[first:].tolist() == expected[first:].tolist()
    assert got[first:] == lines[first:]


@pytest.mark.parametrize("max_dets", [(1, 10, 300), (1, 2, 3)])
def test_ap_at_the_last_limit_where_there_is_no_100(max_dets, capsys):
    arrays = random_arrays(0)
    assert by_pycocotools(arrays, max_dets, capsys)[0][0] == -1
    expected, lines = by_pycocotools(arrays, (1, 10, 100), capsys)
    stats = coco_stats(arrays, max_dets)
    assert stats[0] == expected[0]
    assert coco_summary_lines(stats, max_dets)[0] == lines[0].replace("maxDets=100", f"maxDets={max_dets[2]:>3}")


def test_nothing_defined(capsys):
    arrays = Arrays(*(np.full(shape, -1.0) for shape in ((10, 101, 2, 4, 3), (10, 2, 4, 3), (10, 101, 2, 4, 3))))
    expected, lines = by_pycocotools(arrays, (1, 10, 100), capsys)
    stats = coco_stats(arrays, (1, 10, 100))
    assert stats.tolist() == expected.tolist() == [-1.0] * 12
    assert coco_summary_lines(stats, (1, 10, 100)) == lines


def test_names():
    stats = np.arange(12.0)
    assert stat_names((1, 10, 100)) == [
        *("AP", "AP50", "AP75", "APs", "APm", "APl"),
        *("AR@1", "AR@10", "AR@100", "ARs@100", "ARm@100", "ARl@100"),
    ]
    # As in coco_metric_names of mmdet 3.3's CocoMetric, behind the metric's name.
    assert mmdet_metrics(stats, "bbox", (100, 300, 1000)) == {
        "bbox_mAP": 0,
        "bbox_mAP_50": 1,
        "bbox_mAP_75": 2,
        "bbox_mAP_s": 3,
        "bbox_mAP_m": 4,
        "bbox_mAP_l": 5,
        "bbox_AR@100": 6,
        "bbox_AR@300": 7,
        "bbox_AR@1000": 8,
        "bbox_AR_s@1000": 9,
        "bbox_AR_m@1000": 10,
        "bbox_AR_l@1000": 11,
    }


@pytest.mark.parametrize("max_dets", LIMITS)
def test_per_class_is_the_same_for_each_category_alone(max_dets):
    arrays = random_arrays(5)
    rows = per_class(arrays, max_dets)
    assert len(rows) == 7
    for k, row in enumerate(rows):
        alone = Arrays(arrays.precision[:, :, [k]], arrays.recall[:, [k]], arrays.scores[:, :, [k]])
        stats = coco_stats(alone, max_dets)
        expected = [None if value == -1 else value for value in stats[[0, 1, 2, 3, 4, 5, 8]].tolist()]
        assert row == dict(zip(["AP", "AP50", "AP75", "APs", "APm", "APl", "AR"], expected, strict=True))
    assert any(row["APs"] is None for row in rows)


def test_stack_puts_categories_on_their_axis():
    arrays = random_arrays(6)
    parts = [CategoryResult(arrays.precision[:, :, k], arrays.recall[:, k], arrays.scores[:, :, k]) for k in range(7)]
    stacked = Arrays.stack(parts)
    np.testing.assert_array_equal(stacked.precision, arrays.precision)
    np.testing.assert_array_equal(stacked.recall, arrays.recall)
    np.testing.assert_array_equal(stacked.scores, arrays.scores)
    with pytest.raises(ValueError, match="need at least one array"):
        Arrays.stack([])
