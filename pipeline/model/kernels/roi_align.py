"""RoIAlign (He et al. 2017, arXiv 1703.06870) of RoIs that lie on several levels of a pyramid.

Half-pixel aligned, with as many samples per bin as the RoI has pixels there (mmdet's ``sampling_ratio=0``).

B images, R RoIs, C channels, S bins along a side of a pooled RoI, T pixels of one bin along an axis, H W size of a map.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

_MAX_TAPS = 1 << 22  # index entries at once: bounds the memory for any number of RoIs


@torch.library.custom_op("maskfleet::roi_align_levels", mutates_args=(), device_types="cpu")
def roi_align_levels(
    features: list[Tensor], boxes: Tensor, levels: Tensor, images: Tensor, side: int, strides: list[int]
) -> Tensor:
    """RoIAlign of each RoI from its own level, for inference: it has no gradient.

    Each row of the result is written, whatever the boxes hold. Zeros come from a RoI without a level, without area,
    with a coordinate that is not a number, or so large that a bin would have more samples than the map has pixels
    along that axis: no box within the image is, and the time and memory of one RoI are bounded.

    Args:
        features: the levels' maps ``(B, C, H, W)``, of one dtype; channels last in memory spares a copy.
        boxes: float32 ``(R, 4)`` xyxy in input pixels.
        levels: int64 ``(R,)``, index into `features`; -1 for a RoI without a level.
        images: int64 ``(R,)``, the image in the batch each RoI belongs to; read where the RoI has a level.
        side: S.
        strides: of each level, in input pixels.

    Returns:
        ``(R, C, S, S)`` of the features' dtype, channels last in memory, computed in float32.
    """
    pooled = features[0].new_zeros((len(boxes), side, side, features[0].shape[1])).permute(0, 3, 1, 2)
    align_each_level(roi_align_cpu, pooled, features, boxes, levels, images, strides)
    return pooled


def align_each_level(
    align: Callable[[Tensor, Tensor, int, float], Tensor],
    pooled: Tensor,
    features: Sequence[Tensor],
    boxes: Tensor,
    levels: Tensor,
    images: Tensor,
    strides: Sequence[int],
) -> None:
    """Align the RoIs of one level after the other, by a function with the arguments of `roi_align_cpu`.

    Args:
        pooled: ``(R, C, S, S)``, written where the RoI has a level.
    """
    rois = torch.cat([images[:, None].to(boxes), boxes], dim=1)
    for level, (feature, stride) in enumerate(zip(features, strides, strict=True)):
        members = (levels == level).nonzero()[:, 0]
        if len(members):
            aligned = align(feature.float(), rois[members], pooled.shape[-1], 1 / stride)
            pooled[members] = aligned.to(pooled.dtype)


@roi_align_levels.register_kernel("cuda")
def _(features: list[Tensor], boxes: Tensor, levels: Tensor, images: Tensor, side: int, strides: list[int]) -> Tensor:
    from pipeline.model.kernels import cuda

    return cuda.roi_align_levels(features, boxes, levels, images, side, strides)


@roi_align_levels.register_fake
def _(features: list[Tensor], boxes: Tensor, levels: Tensor, images: Tensor, side: int, strides: list[int]) -> Tensor:
    R, C = boxes.shape[0], features[0].shape[1]  # len() would fix the number in a graph
    return features[0].new_empty((R, side, side, C)).permute(0, 3, 1, 2)


def roi_align_cpu(feature: Tensor, rois: Tensor, side: int, scale: float) -> Tensor:
    """As torchvision's ``roi_align(..., sampling_ratio=0, aligned=True)``, up to the order of the sums.

    torchvision's CPU kernel uses one core and one lane; this is a sparse matrix product. A bin's value is a weighted
    sum of the pixels around its samples, with weights that are a product of one factor per axis. The pixels of a bin
    are gathered once, however many samples touch them, by ``embedding_bag``, which runs on all cores and over whole
    channel vectors.

    Zeros for the RoIs that `roi_align_levels` names. It has a gradient by the feature.

    Args:
        feature: float32 ``(B, C, H, W)``; channels last in memory spares a copy.
        rois: ``(R, 5)``: index in the batch, then xyxy in input pixels.
        side: S, bins along a side.
        scale: from input pixels to those of the map.

    Returns:
        float32 ``(R, C, S, S)``, channels last in memory.
    """
    B, C, H, W = feature.shape
    table = feature.permute(0, 2, 3, 1).reshape(B * H * W, C)
    start = rois[:, 1:3] * scale - 0.5
    bin_size = (rois[:, 3:5] * scale - 0.5 - start) / side
    # One sample per pixel of the bin, as torchvision counts them; a RoI without area has none.
    samples = bin_size.ceil()
    usable = ((samples > 0) & (samples <= samples.new_tensor([W, H]))).all(dim=1)  # a NaN fails both
    samples = samples.where(usable[:, None], 0).long()
    pooled = table.new_zeros((len(rois), side * side, C))
    for count_x, count_y in samples.unique(dim=0).tolist():
        if count_x == 0:
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
