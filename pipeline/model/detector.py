"""What every detector is to the rest of the project: images in, boxes, scores, labels and soft masks out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pipeline.model.architecture import Variant
from pipeline.model.detections import BatchDetections
from pipeline.model.settings import TestSettings


class NotFinite(ArithmeticError):
    """What a network computed on a batch is NaN or infinite, so that what it found means nothing."""


def check_finite(tensors: Sequence[Tensor]) -> None:
    """Raise unless all numbers are finite.

    Waits for the device once, so it belongs where its results are waited for anyway. By the extremes, which NaN and
    infinity reach: of maps whose channels are last that takes a CPU a tenth of the time of ``isfinite``.

    Raises:
        NotFinite: they are not.
    """
    extremes = [extreme.float() for tensor in tensors if tensor.numel() for extreme in (tensor.amin(), tensor.amax())]
    if extremes and not torch.stack(extremes).isfinite().all():
        raise NotFinite("the network's numbers are NaN or infinite on this image")


class Detector(nn.Module):
    """A network that finds objects and their masks.

    Where training may start from a classifier's weights, those are below ``backbone.``.

    Attributes:
        variant: all that decides the shapes of its weights.
    """

    variant: Variant

    def forward(
        self, images: Tensor, image_sizes: Tensor, scale_factors: Tensor, settings: TestSettings
    ) -> BatchDetections:
        """Detect in a batch of one padded shape.

        Args:
            images: float32 ``(B, 3, H, W)``, normalised, zero-padded right and below to multiples of 32.
            image_sizes: float32 ``(B, 2)``, ``(H, W)`` of each image in the input before padding.
            scale_factors: float32 ``(B, 2)``, (x, y) factors from original image to input pixels.
            settings: thresholds, and how much is kept; the sizes in it have been applied to the images already.

        Raises:
            NotFinite: of NaN no threshold is exceeded, and the images would seem to be empty.
        """
        raise NotImplementedError
