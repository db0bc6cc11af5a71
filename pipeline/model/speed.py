"""Rewrites of a loaded detector that make it faster and leave its detections as they are."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pipeline.model.architectures import network_of
from pipeline.model.detector import Detector
from pipeline.model.host_memory import keep_freed_memory


@dataclass(frozen=True)
class SpeedOptions:
    """What may be rewritten. ``SpeedOptions.none()`` is the plain model.

    Attributes:
        fold_batch_norm: BatchNorm becomes part of the convolution before it.
        fused_attention: PyTorch's fused attention kernels in the backbone, with biases made once.
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


def speed_up(detector: Detector, options: SpeedOptions) -> Detector:
    """Apply the options to a detector in eval mode, in place; it can no longer be trained or saved."""
    network = network_of(detector.variant)
    if options.fold_batch_norm:
        network.fold_batch_norm(detector)
    if options.fused_attention:
        network.fuse_attention(detector)
    if options.reuse_memory and next(detector.parameters()).device.type == "cpu":
        keep_freed_memory()
    if options.channels_last:
        detector.to(memory_format=torch.channels_last)
    if options.compile:
        for part in network.compiled(detector):
            part.compile()
    return detector
