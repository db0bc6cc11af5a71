"""What every detector is to the rest of the project: images in, boxes, scores, labels and soft masks out."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from pipeline.model.architecture import Variant
from pipeline.model.settings import TestSettings


@dataclass(frozen=True)
class BatchDetections:
    """The detections of a batch, image after image, each image's best first.

    Attributes:
        boxes: ``(N, 4)`` xyxy in pixels of each one's original image.
        scores: ``(N,)``.
        labels: int64 ``(N,)``.
        masks: ``(N, S, S)`` probabilities over each box, S the same for all.
        counts: detections of each image; they sum to N.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: Tensor
    counts: list[int]


class Detector(nn.Module):
    """A network that finds objects and their masks.

    Where training may start from a classifier's weights, those are below ``backbone.``.

    Attributes:
        variant: its sizes.
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
            settings: thresholds and counts.
        """
        raise NotImplementedError
