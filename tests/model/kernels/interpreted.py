"""The kernels for CUDA with their launches, run by Triton's interpreter on the CPU.

`test_cuda` runs this file in a process of its own: the interpreter must be chosen before Triton is imported.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import triton

from pipeline.model.kernels import cuda
from pipeline.model.settings import PIXEL_MEAN, PIXEL_STD
from tests.model.kernels.cases import (
    INPUT,
    STRIDES,
    UNUSABLE_BOXES,
    boxes_of_all_kinds,
    crowd,
    maps,
    opencv_inputs,
    packed,
    pictures_of,
    torchvision_levels,
    torchvision_nms,
)

assert triton.knobs.runtime.interpret
torch.set_num_threads(1)


@pytest.mark.parametrize(("side", "every"), [(2, 4), (7, 34), (14, 100)])
def test_roi_align_equals_torchvision(side: int, every: int) -> None:
    features, (boxes, levels, images) = maps(), (x[::every] for x in boxes_of_all_kinds())
    pooled = cuda.roi_align_levels(features, boxes, levels, images, side, STRIDES)
    assert pooled.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(pooled, torchvision_levels(features, boxes, levels, images, side))


def test_roi_align_in_half_precision() -> None:
    """The interpreter drops bits where hardware rounds: off by a unit in the last of 8 places at most."""
    features, (boxes, levels, images) = (
        [feature.bfloat16() for feature in maps()],
        (x[1::29] for x in boxes_of_all_kinds()),
    )
    pooled = cuda.roi_align_levels(features, boxes, levels, images, 2, STRIDES)
    expected = torchvision_levels(features, boxes, levels, images, 2)
    assert pooled.dtype == torch.bfloat16
    assert ((pooled.float() - expected).abs() <= 2**-7 * expected.abs()).all()


@pytest.mark.parametrize("channels", [1, 5, 300])
def test_roi_align_of_any_number_of_channels(channels: int) -> None:
    """Maps that are not channels last, too."""
    features = [feature.contiguous() for feature in maps(channels=channels)]
    boxes, levels, images = (x[30:120:30] for x in boxes_of_all_kinds())
    pooled = cuda.roi_align_levels(features, boxes, levels, images, 2, STRIDES)
    assert torch.equal(pooled, torchvision_levels(features, boxes, levels, images, 2))


def test_roi_align_reads_nothing_for_boxes_that_cannot_be_pooled() -> None:
    """Their image does not exist either: an address made from it would end the process."""
    boxes = torch.tensor(UNUSABLE_BOXES).repeat(len(STRIDES) + 2, 1)
    levels = torch.arange(-1, len(STRIDES) + 1).repeat_interleave(len(UNUSABLE_BOXES))
    levels[levels == len(STRIDES)] = torch.iinfo(torch.int64).min
    images = torch.full_like(levels, 1 << 40)
    pooled = cuda.roi_align_levels(maps(), boxes, levels, images, 2, STRIDES)
    assert (pooled == 0).all()


def test_roi_align_stays_in_the_map() -> None:
    """A map of ones between NaNs, and boxes that begin or end far away: a read beside it shows as NaN."""
    height, width = INPUT
    features = []
    for stride in STRIDES:
        around = torch.full((3, height // stride, width // stride, 4), math.nan)
        around[1] = 1
        features.append(around[1:2].permute(0, 3, 1, 2))
    far = [-1e9, -3e4, -1.0, 0.0, 30.0, width + 1.0, 3e4, 1e9, math.nan, math.inf, -math.inf]
    random = np.random.default_rng(0)
    boxes = torch.tensor(random.choice(far, (60, 4)), dtype=torch.float32)
    levels = torch.arange(len(boxes)) % len(STRIDES)
    pooled = cuda.roi_align_levels(features, boxes, levels, torch.zeros_like(levels), 2, STRIDES)
    assert ((pooled >= 0) & (pooled <= 1)).all()


def test_roi_align_of_no_rois() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    assert cuda.roi_align_levels(maps(), torch.zeros(0, 4), none, none, 7, STRIDES).shape == (0, 3, 7, 7)


def test_roi_align_takes_four_levels() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    with pytest.raises(ValueError, match="3 maps with 3 strides"):
        cuda.roi_align_levels(maps()[:3], torch.zeros(0, 4), none, none, 7, STRIDES[:3])


@pytest.mark.parametrize(("groups", "number"), [(1, 1), (2, 31), (1, 32), (3, 33), (2, 257)])
@pytest.mark.parametrize("iou_threshold", [0.0, 0.6, 0.7])
def test_nms_equals_torchvision(groups: int, number: int, iou_threshold: float) -> None:
    boxes, valid = crowd(groups, number, seed=number)
    assert torch.equal(cuda.nms_groups(boxes, valid, iou_threshold), torchvision_nms(boxes, valid, iou_threshold))


@pytest.mark.parametrize("number", [64, 65, 200])
def test_nms_chunk_after_chunk(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(cuda, "CHUNK", 64)
    boxes, valid = crowd(2, number, seed=number)
    before = valid.clone()
    assert torch.equal(cuda.nms_groups(boxes, valid, 0.5), torchvision_nms(boxes, valid, 0.5))
    assert torch.equal(valid, before)


def test_nms_where_each_box_overlaps_the_next() -> None:
    """The longest chain there is: whether a box stays depends on all before it."""
    left = torch.arange(100.0)
    boxes = torch.stack([left, left * 0, left + 4, left * 0 + 1], dim=1)[None]
    valid = torch.ones(1, 100, dtype=torch.bool)
    assert cuda.nms_groups(boxes, valid, 0.5)[0].nonzero()[:, 0].tolist() == list(range(0, 100, 2))


@pytest.mark.parametrize("iou_threshold", [0.2, 0.3, 0.4, 0.6])
def test_nms_at_the_threshold(iou_threshold: float) -> None:
    """IoUs that as float32 are the threshold's neighbours, or the float32 next to it itself."""
    tenths = torch.arange(1.0, 11)
    boxes = torch.stack([torch.tensor([0, 0, 10.0, 1])] * 10).repeat_interleave(2, dim=0)
    boxes[1::2, 2] = tenths
    boxes = boxes.view(10, 2, 4)
    valid = torch.ones(10, 2, dtype=torch.bool)
    kept = cuda.nms_groups(boxes, valid, iou_threshold)
    assert torch.equal(kept, torchvision_nms(boxes, valid, iou_threshold))
    assert kept[:, 1].sum() in (round(10 * iou_threshold), round(10 * iou_threshold) - 1)


def test_nms_of_boxes_that_are_not_numbers() -> None:
    boxes, valid = crowd(1, 40, seed=0)
    boxes[0, ::3, 1] = math.nan
    boxes[0, 1::9] = math.inf
    assert torch.equal(cuda.nms_groups(boxes, valid, 0.5), torchvision_nms(boxes, valid, 0.5))


def test_nms_of_views() -> None:
    boxes, valid = crowd(80, 3, seed=0)
    found = cuda.nms_groups(boxes.transpose(0, 1), valid.t(), 0.5)
    assert torch.equal(found, torchvision_nms(boxes.transpose(0, 1), valid.t(), 0.5))


@pytest.mark.parametrize(("groups", "number"), [(0, 5), (2, 0)])
def test_nms_of_nothing(groups: int, number: int) -> None:
    valid = torch.zeros(groups, number, dtype=torch.bool)
    assert cuda.nms_groups(torch.zeros(groups, number, 4), valid, 0.5).shape == (groups, number)


# Of one batch: (from, to), both (H, W); enlarged, made smaller, both, unchanged, to and from one pixel, a sliver.
SIZES = [
    ((3, 47), (5, 270)),
    ((30, 120), (4, 40)),
    ((2, 100), (6, 20)),
    ((5, 70), (5, 70)),
    ((1, 1), (3, 9)),
    ((5, 6), (1, 1)),
    ((2, 900), (1, 263)),
]


def test_resize_equals_opencv() -> None:
    images, targets = pictures_of([source for source, _ in SIZES]), [target for _, target in SIZES]
    inputs = cuda.resize_normalise(*packed(images, targets), 7, 288, PIXEL_MEAN, PIXEL_STD)
    assert torch.equal(inputs, opencv_inputs(images, targets, 7, 288))


def test_resize_of_random_sizes_equals_opencv() -> None:
    random = np.random.default_rng(0)
    sizes = [tuple(int(side) for side in row) for row in random.integers(1, (60, 260, 5, 160), (8, 4))]
    images, targets = pictures_of([(h, w) for h, w, _, _ in sizes]), [(h, w) for _, _, h, w in sizes]
    inputs = cuda.resize_normalise(*packed(images, targets), 4, 160, PIXEL_MEAN, PIXEL_STD)
    assert torch.equal(inputs, opencv_inputs(images, targets, 4, 160))


def test_resize_of_no_images() -> None:
    none = torch.zeros(0, dtype=torch.uint8), torch.zeros(0, 5, dtype=torch.int64)
    assert cuda.resize_normalise(*none, 32, 32, PIXEL_MEAN, PIXEL_STD).shape == (0, 3, 32, 32)
