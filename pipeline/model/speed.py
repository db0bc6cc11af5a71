"""Rewrites of a loaded detector that make it faster and leave its detections as they are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from timm.models.swin_transformer import WindowAttention
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from pipeline.model.detector import Detector
from pipeline.model.host_memory import keep_freed_memory
from pipeline.model.roi import ConvBlock


@dataclass(frozen=True)
class SpeedOptions:
    """What may be rewritten. ``SpeedOptions.none()`` is the plain model.

    Attributes:
        fold_batch_norm: BatchNorm of the box heads becomes part of the convolution before it.
        fused_attention: PyTorch's fused attention kernels in the backbone.
        channels_last: memory layout of the convolutions.
        reuse_memory: on a CPU, the *process* keeps the memory it frees (see `host_memory`).
        compile: ``torch.compile`` of backbone, neck and heads; costs minutes once for each input shape.
    """

    fold_batch_norm: bool = True
    fused_attention: bool = True
    channels_last: bool = True
    reuse_memory: bool = True
    compile: bool = False

    @staticmethod
    def none() -> SpeedOptions:
        """Nothing is rewritten."""
        return SpeedOptions(False, False, False, False, False)


def speed_up(detector: Detector, options: SpeedOptions) -> Detector:
    """Apply the options to a detector in eval mode, in place; it can no longer be trained or saved."""
    if options.fold_batch_norm:
        fold_batch_norm(detector)
    for module in detector.modules():
        if isinstance(module, WindowAttention):
            module.fused_attn = options.fused_attention  # type: ignore[misc]  # final for TorchScript only
    if options.reuse_memory and next(detector.parameters()).device.type == "cpu":
        keep_freed_memory()
    if options.channels_last:
        detector.to(memory_format=torch.channels_last)
    if options.compile:
        for part in (detector.backbone, detector.neck, detector.rpn, detector.box_heads, detector.mask_heads):
            part.compile()
    return detector


def fold_batch_norm(detector: nn.Module) -> None:
    """Replace each convolution + BatchNorm by one convolution with the norm's scale and shift in its weights."""
    for block in detector.modules():
        if isinstance(block, ConvBlock) and isinstance(block.norm, nn.BatchNorm2d):
            block.conv = fuse_conv_bn_eval(block.conv, block.norm)
            block.norm = nn.Identity()
