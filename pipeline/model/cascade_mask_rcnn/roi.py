"""What box and mask heads share: pooling RoIs from the pyramid, and the convolutions behind it.

B images, N slots of an image, R RoIs of the whole batch, C channels, S bins along a side of a pooled RoI, H W size of a
map.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.ops import roi_align

from pipeline.model.cascade_mask_rcnn.boxes import pyramid_level
from pipeline.model.cascade_mask_rcnn.rpn import STRIDES
from pipeline.model.kernels.roi_align import align_each_level, roi_align_cpu, roi_align_levels

ROI_LEVELS = 4  # P2..P5


class Slots:
    """The padded slots of a batch, and those of them that the heads compute.

    R RoIs are all B * N slots, so that shapes depend on no number of objects and nothing waits for the device. Or,
    compact, they are the filled ones alone: on a CPU an empty slot costs what a filled one costs, and there is
    nothing to wait for.

    Attributes:
        valid: bool ``(B, N)``: the slot is filled.
        images: int64 ``(R,)``, the image in the batch each RoI belongs to.
        filled: bool ``(R,)``: it is no empty slot.
    """

    def __init__(self, valid: Tensor, compact: bool) -> None:
        self.valid = valid
        self._rows = valid.flatten().nonzero()[:, 0] if compact else None
        self.images = self.pack(torch.arange(valid.shape[0], device=valid.device)[:, None].expand_as(valid))
        self.filled = self.pack(valid)

    def pack(self, values: Tensor) -> Tensor:
        """(B, N, ...) -> (R, ...)."""
        flat = values.flatten(0, 1)
        return flat if self._rows is None else flat[self._rows]

    def unpack(self, values: Tensor) -> Tensor:
        """(R, ...) -> (B, N, ...), zero in empty slots."""
        if self._rows is None:
            empty = ~self.filled.view(-1, *[1] * (values.dim() - 1))
            return values.masked_fill(empty, 0).unflatten(0, self.valid.shape)
        padded = values.new_zeros((self.valid.numel(), *values.shape[1:]))
        return padded.index_copy(0, self._rows, values).unflatten(0, self.valid.shape)


def pool_slots(features: Sequence[Tensor], boxes: Tensor, slots: Slots, side: int) -> Tensor:
    """RoIAlign without a gradient; empty slots pool zeros.

    Args:
        features: P2..P5, ``(B, C, H, W)``.
        boxes: float32 ``(R, 4)`` xyxy in input pixels, as ``slots`` packs them.
        slots: what the boxes belong to.
        side: bins along a side of the output.

    Returns:
        ``(R, C, side, side)`` of the features' type, channels last in memory.
    """
    levels = pyramid_level(boxes, ROI_LEVELS).masked_fill(~slots.filled, -1)
    return roi_align_levels(list(features), boxes, levels, slots.images, side, list(STRIDES[:ROI_LEVELS]))


def pool_rois(features: Sequence[Tensor], boxes: Tensor, image_index: Tensor, side: int) -> Tensor:
    """RoIAlign with a gradient, each RoI from the level that fits its size: what training pools with.

    Args:
        features: P2..P5, float32 ``(B, C, H, W)``.
        boxes: ``(R, 4)`` xyxy in input pixels. NaN counts as zero: torchvision's kernel would make an index of it.
        image_index: int64 ``(R,)``, the image in the batch each box belongs to.
        side: bins along a side of the output.

    Returns:
        float32 ``(R, C, side, side)``.
    """
    boxes = boxes.nan_to_num(0.0)
    on_cpu = boxes.device.type == "cpu"
    pooled = torch.empty(
        (len(boxes), features[0].shape[1], side, side),
        device=boxes.device,
        memory_format=torch.channels_last if on_cpu else torch.contiguous_format,
    )
    align = roi_align_cpu if on_cpu else partial(roi_align, sampling_ratio=0, aligned=True)
    levels = pyramid_level(boxes, ROI_LEVELS)
    align_each_level(align, pooled, features, boxes, levels, image_index, STRIDES[:ROI_LEVELS])
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
