"""What box and mask heads share: pooling RoIs from the pyramid, and the convolutions behind it.

R RoIs, C channels, S bins along a side of a pooled RoI, H W size of a map.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.ops import roi_align

from pipeline.model.cascade_mask_rcnn.boxes import pyramid_level
from pipeline.model.cascade_mask_rcnn.rpn import STRIDES
from pipeline.model.kernels.roi_align import roi_align_cpu

ROI_LEVELS = 4  # P2..P5


def image_index(counts: list[int], device: torch.device) -> Tensor:
    """For boxes laid end to end, image after image, the image each belongs to: int64 ``(sum(counts),)``."""
    images = torch.arange(len(counts), device=device)
    return images.repeat_interleave(torch.tensor(counts, device=device), output_size=sum(counts))


def pool_rois(features: Sequence[Tensor], boxes: Tensor, image_index: Tensor, side: int) -> Tensor:
    """RoIAlign (He et al. 2017, arXiv 1703.06870), each RoI from the level that fits its size.

    Half-pixel aligned, with as many samples per bin as the RoI has pixels (``sampling_ratio=0``).

    Args:
        features: P2..P5, float32 ``(B, C, H, W)``.
        boxes: ``(R, 4)`` xyxy in input pixels.
        image_index: int64 ``(R,)``, the image in the batch each box belongs to.
        side: bins along a side of the output.

    Returns:
        float32 ``(R, C, side, side)``.
    """
    rois = torch.cat([image_index[:, None].to(boxes), boxes], dim=1)
    levels = pyramid_level(boxes, ROI_LEVELS)
    on_cpu = boxes.device.type == "cpu"
    pooled = torch.empty(
        (len(boxes), features[0].shape[1], side, side),
        device=boxes.device,
        memory_format=torch.channels_last if on_cpu else torch.contiguous_format,
    )
    for level in range(ROI_LEVELS):
        members = (levels == level).nonzero()[:, 0]
        if len(members) == 0:
            continue
        scale = 1 / STRIDES[level]
        if on_cpu:
            pooled[members] = roi_align_cpu(features[level], rois[members], side, scale)
        else:
            pooled[members] = roi_align(features[level], rois[members], side, scale, sampling_ratio=0, aligned=True)
    return pooled


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
