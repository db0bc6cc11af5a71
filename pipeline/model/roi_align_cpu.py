"""RoIAlign on a CPU as a sparse matrix product; torchvision's CPU kernel uses one core and one lane.

A bin's value is a weighted sum of the pixels around its samples, with weights that are a product of one
factor per axis. The pixels of a bin are gathered once, however many samples touch them, by
``embedding_bag``, which runs on all cores and over whole channel vectors.

R RoIs, S bins along a side, T pixels of one bin along an axis, C channels, H W size of the map.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_MAX_TAPS = 1 << 22  # index entries at once: bounds the memory for any number of RoIs


def roi_align_cpu(feature: Tensor, rois: Tensor, side: int, scale: float) -> Tensor:
    """As torchvision's ``roi_align(..., sampling_ratio=0, aligned=True)``, up to the order of the sums.

    Args:
        feature: float32 ``(B, C, H, W)``; channels last in memory spares a copy.
        rois: ``(R, 5)``: index in the batch, then xyxy in input pixels.
        side: S.
        scale: from input pixels to those of the map.

    Returns:
        float32 ``(R, C, S, S)``, channels last in memory.
    """
    B, C, H, W = feature.shape
    table = feature.permute(0, 2, 3, 1).reshape(B * H * W, C)
    start = rois[:, 1:3] * scale - 0.5
    bin_size = (rois[:, 3:5] * scale - 0.5 - start) / side
    # One sample per pixel of the bin, as torchvision counts them; a RoI without area has none.
    samples = bin_size.ceil().clamp(min=0).long()
    pooled = table.new_zeros((len(rois), side * side, C))
    for count_x, count_y in samples.unique(dim=0).tolist():
        if count_x == 0 or count_y == 0:
            continue
        members = ((samples[:, 0] == count_x) & (samples[:, 1] == count_y)).nonzero()[:, 0]
        chunk = max(1, _MAX_TAPS // (side * side * (count_x + 2) * (count_y + 2)))
        for part in members.split(chunk):
            x, weight_x = _taps(start[part, 0], bin_size[part, 0], side, count_x, W)
            y, weight_y = _taps(start[part, 1], bin_size[part, 1], side, count_y, H)
            row = y + rois[part, 0].long()[:, None, None] * H
            index = row[:, :, None, :, None] * W + x[:, None, :, None, :]
            weight = weight_y[:, :, None, :, None] * weight_x[:, None, :, None, :]
            taps = index.shape[-2] * index.shape[-1]
            pooled[part] = F.embedding_bag(
                index.view(-1, taps), table, mode="sum", per_sample_weights=weight.view(-1, taps)
            ).view(len(part), side * side, C)
    return pooled.view(len(rois), side, side, C).permute(0, 3, 1, 2)


def _taps(start: Tensor, bin_size: Tensor, side: int, count: int, size: int) -> tuple[Tensor, Tensor]:
    """Along one axis, the pixels of every bin and the mean weight of its samples on each: ``(R, S, T)`` twice.

    Samples more than one pixel outside the map count as 0; those less far out take the edge pixel.
    """
    bins = torch.arange(side)[None, :, None]
    steps = (torch.arange(count) + 0.5)[None, None, :]
    # In this order of operations torchvision rounds to the same positions.
    position = (start[:, None, None] + bins * bin_size[:, None, None]) + steps * bin_size[:, None, None] / count
    valid = (position >= -1) & (position <= size)
    position = position.clamp(0, size - 1)
    pixels = position[..., :1].floor() + torch.arange(count + 2)
    distance = (position[:, :, None, :] - pixels[:, :, :, None]).abs_()
    weight = ((1 - distance).clamp_(min=0) * valid[:, :, None, :]).sum(dim=3) / count
    return pixels.clamp_(max=size - 1).long(), weight
