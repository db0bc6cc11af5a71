"""What every detector is to the rest of the project: images in, boxes, scores, labels and soft masks out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pipeline.model.architecture import Variant
from pipeline.model.detections import BatchDetections
from pipeline.model.settings import TestSettings


class NotFinite(ArithmeticError):
    """What a network computed on an image is NaN or infinite, so that what it found means nothing."""


def all_finite(tensors: Sequence[Tensor]) -> Tensor:
    """Of which images all numbers are finite: tensors ``(B, ...)`` -> bool ``(B,)``.

    By the extremes, which NaN and infinity reach: of maps whose channels are last that takes a CPU a tenth of the time
    of ``isfinite``, and the sum of finite numbers may be infinite.
    """
    extremes = []
    for tensor in tensors:
        axes = tuple(range(1, tensor.dim()))
        extremes += [tensor.amin(axes).float(), tensor.amax(axes).float()]
    return torch.stack(extremes).isfinite().all(dim=0)


class Plan:
    """All that a detector computes from the padded shape of its input alone, made by `Detector.plan`."""


class Detector(nn.Module):
    """A network that finds objects and their masks.

    Where training may start from a classifier's weights, those are below ``backbone.``.

    Attributes:
        variant: all that decides the shapes of its weights.
        compact: `forward` may wait for its numbers to leave empty slots out of what it computes. For CPUs, where they
            cost what filled ones cost; the results are the same.
    """

    variant: Variant
    compact: bool = False

    def plan(self, shape: tuple[int, int]) -> Plan:
        """What `forward` needs for inputs of this padded ``(H, W)``, on the device of the weights."""
        raise NotImplementedError

    def forward(
        self,
        images: Tensor,
        image_sizes: Tensor,
        scale_factors: Tensor,
        plan: Plan,
        settings: TestSettings,
        every_candidate: bool = False,
    ) -> BatchDetections:
        """Detect in a batch of one padded shape, without a wait for the device.

        Args:
            images: float32 ``(B, 3, H, W)``, normalised, zero-padded right and below to multiples of 32.
            image_sizes: float32 ``(B, 2)``, ``(H, W)`` of each image in the input before padding.
            scale_factors: float32 ``(B, 2)``, (x, y) factors from original image to input pixels.
            plan: that of ``(H, W)``.
            settings: thresholds, and how much is kept; the sizes in it have been applied to the images already.
            every_candidate: look at everything that may be a detection, for batches that are not ``final`` without.
        """
        raise NotImplementedError
