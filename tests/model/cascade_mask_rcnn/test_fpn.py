"""Oracle: the pyramid written out pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pipeline.model.cascade_mask_rcnn.detector import FeaturePyramid

IN_CHANNELS = [3, 5, 6, 7]
SIZES = {
    "halved exactly": [(16, 24), (8, 12), (4, 6), (2, 3)],
    "halved and rounded up": [(25, 38), (13, 19), (7, 10), (4, 5)],
    "down to one pixel": [(5, 1), (3, 1), (2, 1), (1, 1)],
}


def pyramid_and_maps(sizes: list[tuple[int, int]]) -> tuple[FeaturePyramid, list[torch.Tensor]]:
    torch.manual_seed(0)
    maps = [torch.randn(2, c, *size) for c, size in zip(IN_CHANNELS, sizes, strict=True)]
    return FeaturePyramid(IN_CHANNELS, 4).requires_grad_(False), maps


def nearest(coarse: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Pixel ``i`` of ``n`` takes pixel ``floor(i * coarse / n)``."""
    rows = [i * coarse.shape[2] // size[0] for i in range(size[0])]
    columns = [j * coarse.shape[3] // size[1] for j in range(size[1])]
    return coarse[:, :, rows][:, :, :, columns]


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
def test_equals_sums_by_hand(sizes: list[tuple[int, int]]) -> None:
    pyramid, maps = pyramid_and_maps(sizes)
    laterals = [
        np.einsum("oi,bihw->bohw", conv.weight[:, :, 0, 0].numpy(), x.numpy()) + conv.bias.numpy()[:, None, None]
        for conv, x in zip(pyramid.laterals, maps, strict=True)
    ]
    for fine, coarse in ((2, 3), (1, 2), (0, 1)):
        laterals[fine] = laterals[fine] + nearest(laterals[coarse], sizes[fine])
    levels = pyramid(maps)
    assert [tuple(level.shape[-2:]) for level in levels[:4]] == sizes
    for conv, summed, level in zip(pyramid.outputs, laterals, levels[:4], strict=True):
        expected = F.conv2d(torch.from_numpy(summed), conv.weight, conv.bias, padding=1)
        torch.testing.assert_close(level, expected, rtol=0, atol=1e-5)
        assert level.min() < 0  # no activation


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
def test_last_level_is_every_second_pixel(sizes: list[tuple[int, int]]) -> None:
    pyramid, maps = pyramid_and_maps(sizes)
    *_, fifth, sixth = pyramid(maps)
    assert torch.equal(sixth, fifth[:, :, ::2, ::2])
