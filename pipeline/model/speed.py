"""Rewrites of a loaded detector that make it faster: all but half precision leave its detections as they are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from pipeline.model.architectures import network_of
from pipeline.model.detector import Detector
from pipeline.model.host_memory import keep_freed_memory


@dataclass(frozen=True)
class SpeedOptions:
    """What may be rewritten. ``SpeedOptions.none()`` is the plain model.

    Attributes:
        fold_batch_norm: BatchNorm becomes part of the convolution before it.
        fused_attention: PyTorch's fused attention kernels in the backbone.
        channels_last: memory layout of the convolutions.
        reuse_memory: on a CPU, the *process* keeps the memory it frees (see `host_memory`).
        compile: ``torch.compile`` of the parts; costs minutes once for each input shape.
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


def speed_up(detector: Detector, options: SpeedOptions, dtype: torch.dtype = torch.float32) -> Detector:
    """Apply the options to a detector in eval mode, in place; it can no longer be trained or saved.

    Args:
        detector: float32, on its device.
        options: what may be rewritten.
        dtype: what its weights are held in, see `hold_in`; norms are folded before.
    """
    network = network_of(detector.variant)
    if options.fold_batch_norm:
        network.fold_batch_norm(detector)
    hold_in(detector, dtype)
    for module in detector.modules():
        if hasattr(module, "fused_attn"):  # the switch of all of timm's attentions
            module.fused_attn = options.fused_attention  # type: ignore[assignment]  # a plain attribute
    if options.reuse_memory and next(detector.parameters()).device.type == "cpu":
        keep_freed_memory()
    if options.channels_last:
        detector.to(memory_format=torch.channels_last)
    if options.compile:
        for part in network.compiled(detector):
            part.compile()
    return detector


def hold_in(detector: Detector, dtype: torch.dtype) -> None:
    """Hold the weights in this type, in place, so that nothing is cast while it computes.

    Two kinds stay float32: the layers that the architecture names (`Network.float32`), and BatchNorms that were not
    folded, whose kernels take float32 statistics with maps of any type.
    """
    kept = {part for layer in network_of(detector.variant).float32(detector) for part in layer.modules()}
    kept |= {module for module in detector.modules() if isinstance(module, nn.BatchNorm2d)}
    for module in detector.modules():
        if module in kept:
            continue
        for parameter in module.parameters(recurse=False):
            parameter.data = parameter.data.to(dtype)
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_floating_point():
                setattr(module, name, buffer.to(dtype))
