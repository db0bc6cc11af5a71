"""Oracle: RoIAlign sample by sample in numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pipeline.model.cascade_mask_rcnn.roi import ConvBlock, RoIConvs, pool_rois

STRIDES = (4, 8, 16, 32)
CHANNELS = 3
INPUT = (480, 640)  # H, W


def pyramid(batch: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(batch, CHANNELS, INPUT[0] // s, INPUT[1] // s, generator=generator) for s in STRIDES]


def align(feature: np.ndarray, box: list[float], stride: int, side: int) -> np.ndarray:
    """Half-pixel aligned RoIAlign of one box on ``(C, H, W)``, as many samples in a bin as it has pixels."""
    x1, y1, x2, y2 = (value / stride - 0.5 for value in box)
    bin_h, bin_w = (y2 - y1) / side, (x2 - x1) / side
    rows, columns = math.ceil(bin_h), math.ceil(bin_w)
    pooled = np.zeros((len(feature), side, side))
    for i, j in np.ndindex(side, side):
        for r, c in np.ndindex(rows, columns):
            y = y1 + (i + (r + 0.5) / rows) * bin_h
            x = x1 + (j + (c + 0.5) / columns) * bin_w
            pooled[:, i, j] += bilinear(feature, y, x) / (rows * columns)
    return pooled


def bilinear(feature: np.ndarray, y: float, x: float) -> np.ndarray:
    """Zero from one pixel outside on, the edge's value in between."""
    _, height, width = feature.shape
    if not (-1 <= y <= height and -1 <= x <= width):
        return np.zeros(len(feature))
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    top, left = int(y), int(x)
    below, right = min(top + 1, height - 1), min(left + 1, width - 1)
    upper = feature[:, top, left] * (1 - (x - left)) + feature[:, top, right] * (x - left)
    lower = feature[:, below, left] * (1 - (x - left)) + feature[:, below, right] * (x - left)
    return upper * (1 - (y - top)) + lower * (y - top)


# name: (box in input pixels, level)
ROIS = {
    "small": ([30.3, 41.7, 63.1, 98.2], 0),
    "less than a pixel": ([50.1, 60.2, 50.9, 60.4], 0),
    "at the corner": ([0, 0, 40, 40], 0),
    "at the far corner": ([600, 440, 640, 480], 0),
    "no width": ([100, 100, 100, 180], 0),
    "second level": ([100, 50, 250, 200], 1),
    "third level": ([10.5, 20.5, 310.25, 300], 2),
    "whole input": ([0, 0, 640, 480], 3),
    "wide": ([0, 200, 640, 230], 1),
}


@pytest.mark.parametrize("side", [7, 14])
@pytest.mark.parametrize(("box", "level"), ROIS.values(), ids=ROIS.keys())
def test_equals_sampling_by_hand(box: list[float], level: int, side: int) -> None:
    features = pyramid()
    pooled = pool_rois(features, torch.tensor([box]).float(), torch.tensor([1]), side)
    expected = align(features[level][1].double().numpy(), box, STRIDES[level], side)
    assert pooled.shape == (1, CHANNELS, side, side)
    assert pooled.dtype == torch.float32
    np.testing.assert_allclose(pooled[0].numpy(), expected, atol=1e-4)  # positions are float32


def test_a_roi_without_area_pools_zeros() -> None:
    pooled = pool_rois(pyramid(), torch.tensor([[100.0, 100, 100, 180], [90, 90, 90, 90]]), torch.tensor([0, 1]), 7)
    assert (pooled == 0).all()


def test_order_and_images_are_kept_across_levels() -> None:
    features = pyramid()
    boxes = torch.tensor([box for box, _ in ROIS.values()]).float()
    index = torch.arange(len(boxes)) % 2
    together = pool_rois(features, boxes, index, 7)
    for i in range(len(boxes)):
        torch.testing.assert_close(together[i : i + 1], pool_rois(features, boxes[i : i + 1], index[i : i + 1], 7))


def test_no_rois() -> None:
    pooled = pool_rois(pyramid(), torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), 7)
    assert pooled.shape == (0, CHANNELS, 7, 7)


def test_conv_block_with_batch_norm_by_hand() -> None:
    """Variances near the norm's epsilon, where another epsilon shows."""
    torch.manual_seed(0)
    block = ConvBlock(3, 4, batch_norm=True).eval().requires_grad_(False)
    norm = block.norm
    norm.running_mean.normal_()
    norm.running_var.copy_(torch.tensor([1e-4, 1e-3, 1.0, 4.0]))
    norm.weight.normal_()
    norm.bias.normal_()
    assert block.conv.bias is None
    x = torch.randn(5, 3, 7, 7)
    convolved = F.conv2d(x, block.conv.weight, padding=1).double()
    mean, var, weight, bias = (
        t.double()[:, None, None] for t in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    expected = ((convolved - mean) / (var + 1e-5).sqrt() * weight + bias).clamp(min=0)
    torch.testing.assert_close(block(x).double(), expected, rtol=1e-4, atol=1e-4)


def test_conv_block_without_norm_has_a_bias() -> None:
    torch.manual_seed(0)
    block = ConvBlock(3, 4, batch_norm=False).requires_grad_(False)
    x = torch.randn(2, 3, 14, 14)
    expected = F.relu(F.conv2d(x, block.conv.weight, block.conv.bias, padding=1))
    torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize("depth", [0, 1, 4])
def test_depth_of_a_head(depth: int) -> None:
    convs = RoIConvs(3, 5, depth, batch_norm=True).eval()
    assert convs(torch.zeros(2, 3, 7, 7)).shape == (2, 5 if depth else 3, 7, 7)
