"""Boxes along a line, so that overlaps are ratios of lengths; and torchvision's IoU."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.ops import box_iou

from pipeline.model.cascade_mask_rcnn.losses.assign import (
    NEGATIVE,
    UNUSED,
    ImageTargets,
    Rule,
    assign,
    box_ious,
    parts_inside,
)
from tests.model.cascade_mask_rcnn.losses.loss_cases import TWO, boxes_of, objects, target

ANCHORS = Rule(positive=0.7, negative=0.3, best_match=0.3)
STAGE = Rule(positive=0.5, negative=0.5)
Row = tuple[float, float, float, float]


def line(start: float, stop: float) -> Row:
    return (start, 0.0, stop, 10.0)


# name: (boxes, objects, ignored, rule, expected); an object [0, 100] and a box [a, 100] have IoU (100 - a) / 100
CASES: dict[str, tuple[list[Row], list[Row], list[Row], Rule, list[int]]] = {
    "no objects": ([line(0, 9), line(5, 9)], [], [], ANCHORS, [NEGATIVE, NEGATIVE]),
    "no boxes": ([], [line(0, 100)], [], ANCHORS, []),
    "thresholds": (
        [line(0, 100), line(30, 100), line(31, 100), line(70, 100), line(71, 100), line(200, 300)],
        [line(0, 100)],
        [],
        ANCHORS,
        [0, 0, UNUSED, UNUSED, NEGATIVE, NEGATIVE],
    ),
    "a stage has no gap": ([line(50, 100), line(51, 100)], [line(0, 100)], [], STAGE, [0, NEGATIVE]),
    "the better of two": ([line(0, 90)], [line(0, 60), line(0, 80)], [], STAGE, [1]),
    "best box of an object, low as it is": (
        [line(60, 100), line(65, 100)],
        [line(0, 100)],
        [],
        ANCHORS,
        [0, UNUSED],
    ),
    "ties all count": ([line(60, 100), line(0, 40)], [line(0, 100)], [], ANCHORS, [0, 0]),
    "best, yet below its minimum": ([line(71, 100)], [line(0, 100)], [], ANCHORS, [NEGATIVE]),
    "stages have no best match": ([line(60, 100)], [line(0, 100)], [], STAGE, [NEGATIVE]),
    "best match beats a better object": ([line(0, 90)], [line(0, 100), line(0, 60)], [], ANCHORS, [1]),
    "shared best goes to the last": ([line(0, 80)], [line(0, 100), line(0, 100)], [], ANCHORS, [1]),
    "half within an ignored one": (
        [line(50, 150), line(49, 149), line(40, 80)],
        [],
        [line(0, 100)],
        STAGE,
        [UNUSED, UNUSED, UNUSED],
    ),
    "less than half": ([line(51, 151)], [], [line(0, 100)], STAGE, [NEGATIVE]),
    "around a small ignored one": ([line(0, 100)], [], [line(0, 29)], ANCHORS, [NEGATIVE]),
    "around a larger ignored one": ([line(0, 100)], [], [line(0, 30)], ANCHORS, [UNUSED]),
    "an object in a crowd": ([line(20, 40), line(60, 80)], [line(20, 40)], [line(0, 100)], STAGE, [0, UNUSED]),
    "fits the ignored one better": ([line(0, 80)], [line(0, 100)], [line(0, 80)], STAGE, [UNUSED]),
    "fits both alike": ([line(0, 80)], [line(0, 100)], [line(0, 100)], STAGE, [0]),
    "a box without area": ([line(5, 5)], [line(0, 100)], [], ANCHORS, [UNUSED]),
    "an object without area": ([line(5, 5), line(0, 9)], [line(5, 5)], [line(6, 6)], STAGE, [UNUSED, NEGATIVE]),
    "smaller than a pixel": ([line(0.2, 0.6), line(0, 1)], [line(0.2, 0.6)], [], STAGE, [0, NEGATIVE]),
    "not a number": ([(float("nan"),) * 4, line(0, 100)], [line(0, 100)], [line(0, 9)], STAGE, [UNUSED, 0]),
}


@pytest.mark.parametrize(("boxes", "wanted", "ignored", "rule", "expected"), CASES.values(), ids=CASES.keys())
def test_assign(boxes: list[Row], wanted: list[Row], ignored: list[Row], rule: Rule, expected: list[int]) -> None:
    assigned = assign(boxes_of(*boxes), objects(*wanted, ignored=tuple(ignored)), rule)
    assert assigned.dtype == torch.int64
    assert assigned.tolist() == expected


corner = st.integers(0, 20)
box = st.tuples(corner, corner, st.integers(1, 9), st.integers(1, 9)).map(
    lambda b: (float(b[0]), float(b[1]), float(b[0] + b[2]), float(b[1] + b[3]))
)


@given(st.lists(box, max_size=5), st.lists(box, max_size=5))
def test_overlaps_of_boxes_with_area(first: list[Row], second: list[Row]) -> None:
    boxes, others = boxes_of(*first), boxes_of(*second)
    part = parts_inside(boxes, others)
    torch.testing.assert_close(box_ious(boxes, others), box_iou(boxes, others))
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            shared = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
            assert part[i, j].item() == pytest.approx(shared / ((a[2] - a[0]) * (a[3] - a[1])))


def test_boxes_without_area_overlap_nothing() -> None:
    point = boxes_of((3, 3, 3, 3))
    assert box_ious(point, point).tolist() == parts_inside(point, point).tolist() == [[0]]


def test_objects_that_count_and_those_ignored() -> None:
    split = ImageTargets.of(target(*TWO, (1.0, 1.0, 5.0, 5.0), ignored=(1,)))
    assert split.boxes.tolist() == [list(TWO[0]), [1, 1, 5, 5]]
    assert split.labels.tolist() == [1, 0]
    assert split.masks.sum(dim=(1, 2)).tolist() == [24 * 32, 16]
    assert split.ignored_boxes.tolist() == [list(TWO[1])]
    assert ImageTargets.of(target(*TWO)).ignored_boxes.shape == (0, 4)
