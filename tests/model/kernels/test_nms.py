"""Oracles: torchvision's kernel for CPUs, and pairs of boxes whose IoU is known."""

from __future__ import annotations

import pytest
import torch

from pipeline.model.kernels.nms import nms_groups
from tests.model.kernels.cases import crowd, torchvision_nms


@pytest.mark.parametrize(("groups", "number"), [(1, 1), (3, 40), (2, 300)])
@pytest.mark.parametrize("iou_threshold", [0.0, 0.5, 0.7])
def test_equals_torchvision(groups: int, number: int, iou_threshold: float) -> None:
    boxes, valid = crowd(groups, number, seed=number)
    found = nms_groups(boxes, valid, iou_threshold)
    assert found.dtype == torch.bool
    assert torch.equal(found, torchvision_nms(boxes, valid, iou_threshold))


def test_an_invalid_box_neither_stays_nor_suppresses() -> None:
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 8], [50, 50, 60, 60]]])
    assert nms_groups(boxes, torch.tensor([[True, True, True, True]]), 0.5).tolist() == [[True, False, False, True]]
    assert nms_groups(boxes, torch.tensor([[False, True, True, False]]), 0.5).tolist() == [[False, True, False, False]]


def test_a_box_that_a_suppressed_one_overlaps_stays() -> None:
    """IoU of neighbours 0.6, of the ends 1/3."""
    boxes = torch.tensor([[[0.0, 0, 8, 1], [2, 0, 10, 1], [4, 0, 12, 1]]])
    assert nms_groups(boxes, torch.ones(1, 3, dtype=torch.bool), 0.5).tolist() == [[True, False, True]]


def test_no_boxes_and_no_groups() -> None:
    assert nms_groups(torch.zeros(2, 0, 4), torch.zeros(2, 0, dtype=torch.bool), 0.5).shape == (2, 0)
    assert nms_groups(torch.zeros(0, 5, 4), torch.zeros(0, 5, dtype=torch.bool), 0.5).shape == (0, 5)
