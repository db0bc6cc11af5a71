"""The yardstick itself: what counts as the same detection, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from tests.model.compare import Found, assert_same, box_iou, match

BOX = [10.0, 10.0, 110.0, 110.0]


def found(*rows: tuple[list[float], float, int]) -> Found:
    boxes, scores, labels = zip(*rows, strict=True) if rows else ((), (), ())
    return Found(np.array(boxes, float).reshape(-1, 4), np.array(scores, float), np.array(labels, int))


DIFFERENT = {
    "box by one pixel": ([11.0, 10.0, 111.0, 110.0], 0.5, 1),
    "score by two thousandths": (BOX, 0.502, 1),
    "label": (BOX, 0.5, 2),
}


@pytest.mark.parametrize("row", DIFFERENT.values(), ids=DIFFERENT.keys())
def test_different(row: tuple[list[float], float, int]) -> None:
    with pytest.raises(AssertionError, match="matched 0, reference 1, other 1"):
        assert_same(found((BOX, 0.5, 1)), found(row))


def test_the_same_within_rounding() -> None:
    difference = assert_same(found((BOX, 0.5, 1)), found(([10.0, 10.0, 110.0, 110.25], 0.5002, 1)))
    assert difference.box_px == 0.25
    assert difference.score == pytest.approx(2e-4)


def test_one_detection_matches_one_only() -> None:
    assert len(match(found((BOX, 0.5, 1)), found((BOX, 0.5, 1), (BOX, 0.5, 1)))) == 1
    with pytest.raises(AssertionError, match="matched 1, reference 2, other 1"):
        assert_same(found((BOX, 0.5, 1), (BOX, 0.5, 1)), found((BOX, 0.5, 1)))


def test_nothing_equals_nothing() -> None:
    assert assert_same(found(), found()) == (0, 0)


def test_box_iou_by_hand() -> None:
    boxes = np.array([[0, 0, 2, 2], [1, 0, 3, 2], [5, 5, 5, 6]], float)
    np.testing.assert_allclose(box_iou(boxes, boxes), [[1, 1 / 3, 0], [1 / 3, 1, 0], [0, 0, 1]])
