"""What box and mask heads share: pooling RoIs from the pyramid, and the convolutions behind it.

R RoIs, C channels, S bins along a side of a pooled RoI, T pixels of one bin along an axis, H W size of a map.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.ops import roi_align

from pipeline.model.cascade_mask_rcnn.boxes import pyramid_level
from pipeline.model.cascade_mask_rcnn.rpn import STRIDES

ROI_LEVELS = 4  # P2..P5

_MAX_TAPS = 1 << 22  # index entries at once: bounds the memory for any number of RoIs


def image_index(counts: list[int], device: torch.device) -> Tensor:
    """For boxes laid end to end, image after image, the image each belongs to: int64 ``(sum(counts),)``."""
    images = torch.arange(len(counts), device=device)
    return images.repeat_interleave(torch.tensor(counts, device=device), output_size=sum(counts))


def pool_rois(features: Sequence[Tensor], boxes: Tensor, image_index: Tensor, side: int) -> Tensor:
    """RoIAlign (He et al. 2017, arXiv 1703.06870), each RoI from the level that fits its size.

    Half-pixel aligned, with as many samples per bin as the RoI has pixels (``sampling_ratio=0``).

    Args:
        features: P2..P5, ``(B, C, H, W)``; the sums are float32 whatever they are.
        boxes: ``(R, 4)`` xyxy in input pixels.
        image_index: int64 ``(R,)``, the image in the batch each box belongs to.
        side: bins along a side of the output.

    Returns:
        ``(R, C, side, side)``, of the features' type.
    """
    rois = torch.cat([image_index[:, None].to(boxes), boxes], dim=1)
    levels = pyramid_level(boxes, ROI_LEVELS)
    on_cpu = boxes.device.type == "cpu"
    pooled = torch.empty(
        (len(boxes), features[0].shape[1], side, side),
        dtype=features[0].dtype,
        device=boxes.device,
        memory_format=torch.channels_last if on_cpu else torch.contiguous_format,
    )
    for level in range(ROI_LEVELS):
        members = (levels == level).nonzero()[:, 0]
        if len(members) == 0:
            continue
        feature, scale = features[level].float(), 1 / STRIDES[level]
        if on_cpu:
            found = roi_align_cpu(feature, rois[members], side, scale)
        else:
            found = roi_align(feature, rois[members], side, scale, sampling_ratio=0, aligned=True)
        pooled[members] = found.to(pooled.dtype)
    return pooled


def roi_align_cpu(feature: Tensor, rois: Tensor, side: int, scale: float) -> Tensor:
    """As torchvision's ``roi_align(..., sampling_ratio=0, aligned=True)``, up to the order of the sums.

    torchvision's CPU kernel uses one core and one lane; this is a sparse matrix product. A bin's value is a weighted
    sum of the pixels around its samples, with weights that are a product of one factor per axis. The pixels of a bin
    are gathered once, however many samples touch them, by ``embedding_bag``, which runs on all cores and over whole
    channel vectors.

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


class ConvBlock(nn.Module):
    """3x3 convolution, BatchNorm where the head has one, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, batch_norm: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=not batch_norm)
        self.norm: nn.Module = nn.BatchNorm2d(out_channels) if batch_norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(R, C, S, S) -> (R, C', S, S)."""
        return self.norm(self.conv(x)).relu_()


class RoIConvs(nn.Sequential):
    """The convolutions of a head: ``depth`` blocks of ``channels``."""

    def __init__(self, in_channels: int, channels: int, depth: int, batch_norm: bool) -> None:
        widths = [in_channels] + [channels] * depth
        super().__init__(*(ConvBlock(widths[i], channels, batch_norm) for i in range(depth)))


def fold_batch_norm(detector: nn.Module) -> None:
    """Replace each convolution + BatchNorm by one convolution with the norm's scale and shift in its weights."""
    for block in detector.modules():
        if isinstance(block, ConvBlock) and isinstance(block.norm, nn.BatchNorm2d):
            block.conv = fuse_conv_bn_eval(block.conv, block.norm)
            block.norm = nn.Identity()
