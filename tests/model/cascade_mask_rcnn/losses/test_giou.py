"""The formula of the paper, box by box in plain Python."""

from __future__ import annotations

import pytest
import torch

from pipeline.model.cascade_mask_rcnn.losses.cascade import giou
from tests.model.cascade_mask_rcnn.losses.loss_cases import boxes_of

Row = tuple[float, float, float, float]


def giou_by_hand(a: Row, b: Row) -> float:
    def area(box: Row) -> float:
        return max(0, box[2] - box[0]) * max(0, box[3] - box[1])

    shared = area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))
    hull = area((min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])))
    union = area(a) + area(b) - shared
    return shared / union - (hull - union) / hull


PAIRS: dict[str, tuple[Row, Row]] = {
    "equal": ((0, 0, 4, 4), (0, 0, 4, 4)),
    "overlapping": ((0, 0, 4, 4), (2, 1, 8, 5)),
    "inside": ((1, 1, 2, 3), (0, 0, 4, 4)),
    "far apart": ((0, 0, 1, 1), (50, 60, 52, 61)),
    "smaller than a pixel": ((0.1, 0.1, 0.3, 0.2), (0.1, 0.1, 0.4, 0.3)),
}


@pytest.mark.parametrize(("first", "second"), PAIRS.values(), ids=PAIRS.keys())
def test_giou_by_hand(first: Row, second: Row) -> None:
    found = giou(boxes_of(first), boxes_of(second)).item()
    assert found == pytest.approx(1 - giou_by_hand(first, second), abs=1e-5)


def test_giou_sums_pairs_and_pulls_boxes_that_do_not_meet() -> None:
    first, second = (boxes_of(*rows) for rows in zip(*PAIRS.values(), strict=True))
    first.requires_grad_()
    total = giou(first, second)
    assert total.item() == pytest.approx(sum(1 - giou_by_hand(*pair) for pair in PAIRS.values()), abs=1e-4)
    total.backward()
    assert first.grad is not None
    assert (first.grad[3, 2:] < 0).all()  # the far corner of the box far apart is to move towards the other


def test_giou_of_boxes_without_area_has_a_finite_gradient() -> None:
    points = torch.full((1, 4), 3.0, requires_grad=True)
    giou(points, boxes_of((3, 3, 3, 3))).backward()
    assert points.grad is not None
    assert points.grad.isfinite().all()
    assert giou(boxes_of(), boxes_of()).item() == 0
