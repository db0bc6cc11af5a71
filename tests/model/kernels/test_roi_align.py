"""Oracle: torchvision's kernel for CPUs, level by level."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import roi_align

from pipeline.model.kernels.roi_align import roi_align_cpu, roi_align_levels
from tests.model.kernels.cases import INPUT, STRIDES, UNUSABLE_BOXES, boxes_of_all_kinds, maps, torchvision_levels


@st.composite
def rois(draw: st.DrawFn) -> list[list[float]]:
    """Boxes within the input, of any shape: slivers and points among them."""
    x, y = st.floats(0, INPUT[1], width=32), st.floats(0, INPUT[0], width=32)
    rows = draw(st.lists(st.tuples(x, y, x, y), min_size=1, max_size=12))
    return [[min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)] for x1, y1, x2, y2 in rows]


@given(boxes=rois(), stride=st.sampled_from(STRIDES), side=st.sampled_from([7, 14]))
@settings(max_examples=60, deadline=None)
def test_one_level_equals_torchvision(boxes: list[list[float]], stride: int, side: int) -> None:
    feature = maps()[STRIDES.index(stride)]
    numbered = torch.tensor([[i % 2, *box] for i, box in enumerate(boxes)])
    expected = roi_align(feature, numbered, side, 1 / stride, sampling_ratio=0, aligned=True)
    torch.testing.assert_close(roi_align_cpu(feature, numbered, side, 1 / stride), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("side", [7, 14])
def test_all_levels_equal_torchvision(side: int) -> None:
    features, (boxes, levels, images) = maps(), boxes_of_all_kinds()
    pooled = roi_align_levels(features, boxes, levels, images, side, STRIDES)
    expected = torchvision_levels(features, boxes, levels, images, side)
    assert pooled.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(pooled, expected, rtol=0, atol=1e-4)


def test_half_precision_is_float32_rounded_once() -> None:
    features, (boxes, levels, images) = [feature.bfloat16() for feature in maps()], boxes_of_all_kinds()
    pooled = roi_align_levels(features, boxes, levels, images, 7, STRIDES)
    wide = roi_align_levels([feature.float() for feature in features], boxes, levels, images, 7, STRIDES)
    assert pooled.dtype == torch.bfloat16
    assert torch.equal(pooled, wide.bfloat16())


def test_boxes_that_cannot_be_pooled_give_zeros() -> None:
    boxes = torch.tensor([*UNUSABLE_BOXES, [10.0, 10, 50, 50]])
    images = torch.zeros(len(boxes), dtype=torch.int64)
    for level in range(len(STRIDES)):
        pooled = roi_align_levels(maps(), boxes, torch.full_like(images, level), images, 7, STRIDES)
        assert (pooled[:-1] == 0).all()
        assert (pooled[-1] != 0).any()


def test_a_roi_without_a_level_gives_zeros() -> None:
    boxes, images = torch.tensor([[10.0, 10, 50, 50]] * 2), torch.tensor([0, 99])
    pooled = roi_align_levels(maps(), boxes, torch.tensor([0, -1]), images, 7, STRIDES)
    assert (pooled[0] != 0).all()
    assert (pooled[1] == 0).all()


def test_no_rois() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    assert roi_align_levels(maps(), torch.zeros(0, 4), none, none, 7, STRIDES).shape == (0, 3, 7, 7)
