"""Cascade Mask R-CNN with a Swin backbone, assembled from its parts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.model.cascade import CascadeBoxHeads
from pipeline.model.fpn import FeaturePyramid
from pipeline.model.mask_head import CascadeMaskHeads
from pipeline.model.roi import ROI_LEVELS, image_index
from pipeline.model.rpn import RegionProposalNetwork
from pipeline.model.swin import SwinBackbone
from pipeline.model.variants import TestSettings, Variant


@dataclass(frozen=True)
class BatchDetections:
    """The detections of a batch, image after image, each image's best first.

    Attributes:
        boxes: ``(N, 4)`` xyxy in pixels of each one's original image.
        scores: ``(N,)``.
        labels: int64 ``(N,)``.
        masks: ``(N, 28, 28)`` probabilities over each box.
        counts: detections of each image; they sum to N.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: Tensor
    counts: list[int]


class Detector(nn.Module):
    """Backbone, neck, proposals, cascade, masks."""

    def __init__(self, variant: Variant, drop_path_rate: float = 0.0) -> None:
        super().__init__()
        self.variant = variant
        self.backbone = SwinBackbone(variant, drop_path_rate)
        self.neck = FeaturePyramid([variant.embed_dim * 2**i for i in range(4)], variant.fpn_channels)
        self.rpn = RegionProposalNetwork(variant.fpn_channels)
        self.box_heads = CascadeBoxHeads(variant)
        self.mask_heads = CascadeMaskHeads(variant)

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
        features = self.neck(self.backbone(images))
        proposals = [boxes for boxes, _ in self.rpn(features, image_sizes, settings)]
        pyramid = [feature.float() for feature in features[:ROI_LEVELS]]
        found = self.box_heads(pyramid, proposals, image_sizes, scale_factors, settings)
        counts = [len(image.scores) for image in found]
        index = image_index(counts, images.device)
        boxes = torch.cat([f.boxes_image for f in found])
        scores, labels = torch.cat([f.scores for f in found]), torch.cat([f.labels for f in found])
        masks = self.mask_heads(pyramid, boxes * scale_factors[index].repeat(1, 2), index, labels)
        return BatchDetections(boxes, scores, labels, masks, counts)
