"""The three box heads of Cascade R-CNN (Cai & Vasconcelos 2018, arXiv 1712.00726).

R RoIs of the whole batch, K object classes (background is class K), C channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.model.cascade_mask_rcnn.boxes import decode_deltas, nms_by_group
from pipeline.model.cascade_mask_rcnn.roi import RoIConvs, image_index, pool_rois
from pipeline.model.cascade_mask_rcnn.variants import CascadeVariant
from pipeline.model.detector import check_finite
from pipeline.model.settings import TestSettings

BOX_POOL_SIDE = 7
# What each stage's deltas were divided by in training: a later stage corrects less.
STAGE_STDS = ((0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067))


@dataclass(frozen=True)
class BoxDetections:
    """One image's detections, best first: boxes ``(N, 4)`` in image pixels, scores ``(N,)``, labels ``(N,)``."""

    boxes_image: Tensor
    scores: Tensor
    labels: Tensor


class BoxHead(nn.Module):
    """Convolutions, one fully connected layer, then class logits and deltas per class."""

    def __init__(self, variant: CascadeVariant) -> None:
        super().__init__()
        channels = variant.box_channels if variant.box_convs else variant.fpn_channels
        self.num_classes = variant.num_classes
        self.convs: nn.Module = RoIConvs(variant.fpn_channels, channels, variant.box_convs, batch_norm=True)
        self.fc = nn.Linear(channels * BOX_POOL_SIDE**2, variant.box_fc)
        self.classify = nn.Linear(variant.box_fc, variant.num_classes + 1)
        self.regress = nn.Linear(variant.box_fc, 4 * variant.num_classes)

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """(R, C, 7, 7) -> logits ``(R, K + 1)`` and deltas ``(R, K, 4)``, float32."""
        x = self.fc(self.convs(pooled).flatten(1)).relu().float()
        deltas = self.regress(x).view(-1, self.num_classes, 4)
        return self.classify(x).float(), deltas.float()


class CascadeBoxHeads(nn.Module):
    """Each stage pools the boxes that the one before it refined; the logits of all stages are averaged."""

    def __init__(self, variant: CascadeVariant) -> None:
        super().__init__()
        self.stages = nn.ModuleList(BoxHead(variant) for _ in STAGE_STDS)

    def forward(
        self,
        features: list[Tensor],
        proposals: list[Tensor],
        image_sizes: Tensor,
        scale_factors: Tensor,
        settings: TestSettings,
    ) -> list[BoxDetections]:
        """Detections of each image.

        Args:
            features: P2..P5, float32 ``(B, C, H, W)``.
            proposals: per image ``(n, 4)`` xyxy in input pixels.
            image_sizes: ``(B, 2)``, ``(H, W)`` of each image in the input before padding.
            scale_factors: ``(B, 2)``, (x, y) factors from image to input pixels.
            settings: score and NMS thresholds, and how many detections are kept of an image.
        """
        counts = [len(p) for p in proposals]
        index = image_index(counts, image_sizes.device)
        boxes, sizes = torch.cat(proposals), image_sizes[index]
        rows = torch.arange(len(boxes), device=boxes.device)
        total = boxes.new_zeros(())
        for stage, (head, stds) in enumerate(zip(self.stages, STAGE_STDS, strict=True)):
            logits, deltas = head(pool_rois(features, boxes, index, BOX_POOL_SIDE))
            total = total + logits
            if stage + 1 < len(self.stages):
                best = logits[:, :-1].argmax(dim=1)
                boxes = decode_deltas(boxes, deltas[rows, best], stds, sizes)
        # The mean of the logits, not of the probabilities.
        scores = (total / len(self.stages)).softmax(dim=1)[:, :-1]
        check_finite([scores, deltas])
        per_image = zip(
            boxes.split(counts),
            deltas.split(counts),
            scores.split(counts),
            image_sizes,
            scale_factors,
            strict=True,
        )
        return [select_detections(*image, settings) for image in per_image]


def select_detections(
    boxes: Tensor,
    deltas: Tensor,
    scores: Tensor,
    image_size: Tensor,
    scale_factor: Tensor,
    settings: TestSettings,
) -> BoxDetections:
    """One image's final boxes: decode per class, drop low scores, NMS per class in *image* pixels, keep the best.

    Args:
        boxes: ``(n, 4)`` the last stage's RoIs, input pixels.
        deltas: ``(n, K, 4)`` of the last stage.
        scores: ``(n, K)`` of each class, background left out.
        image_size: ``(2,)`` ``(H, W)`` in the input before padding.
        scale_factor: ``(2,)`` (x, y) from image to input pixels.
        settings: score and NMS thresholds, and how many detections are kept.
    """
    roi, label = (scores > settings.score_threshold).nonzero(as_tuple=True)
    score = scores[roi, label]
    decoded = decode_deltas(boxes[roi], deltas[roi, label], STAGE_STDS[-1], image_size)
    boxes_image = decoded / scale_factor.repeat(2)
    keep = nms_by_group(boxes_image, score, label, settings.nms_iou)[: settings.max_detections]
    return BoxDetections(boxes_image[keep], score[keep], label[keep])
