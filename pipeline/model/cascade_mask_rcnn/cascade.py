"""The three box heads of Cascade R-CNN (Cai & Vasconcelos 2018, arXiv 1712.00726).

B images, P proposals of an image, R RoIs of the whole batch, K object classes (background is class K), D detections of
an image, C channels; of the final selection G groups of an image and M candidates of a group.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.model.cascade_mask_rcnn.boxes import decode_deltas, moved_apart, take_boxes
from pipeline.model.cascade_mask_rcnn.roi import RoIConvs, Slots, pool_slots
from pipeline.model.cascade_mask_rcnn.variants import CascadeVariant
from pipeline.model.kernels.nms import nms_groups
from pipeline.model.settings import TestSettings

BOX_POOL_SIDE = 7
# What each stage's deltas were divided by in training: a later stage corrects less.
STAGE_STDS = ((0.1, 0.2), (0.05, 0.1), (0.033, 0.067))
# So many of an image's candidates reach the last NMS, or twice as many as may be kept where that is more: greedy NMS
# looks at them best first, so that no other matters once all that may be kept are found among them.
CANDIDATES = 2048


class BoxDetections(NamedTuple):
    """Of a batch, each image's best first; empty slots are zero.

    Attributes:
        boxes_image: float32 ``(B, D, 4)`` xyxy in pixels of each original image.
        scores: float32 ``(B, D)``.
        labels: int64 ``(B, D)``.
        valid: bool ``(B, D)``: the slot holds a detection.
        final: bool ``(B,)``: no candidate that was left out could have been kept.
    """

    boxes_image: Tensor
    scores: Tensor
    labels: Tensor
    valid: Tensor
    final: Tensor


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
        self, features: list[Tensor], proposals: Tensor, slots: Slots, image_sizes: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What the stages make of the proposals; `select_detections` chooses from it.

        Args:
            features: P2..P5, ``(B, C, H, W)``.
            proposals: float32 ``(B, P, 4)`` xyxy in input pixels.
            slots: which of them there are.
            image_sizes: ``(B, 2)``, ``(H, W)`` of each image in the input before padding.

        Returns:
            The last stage's RoIs ``(B, P, 4)`` in input pixels, its deltas ``(B, P, K, 4)``, and the scores
            ``(B, P, K)`` of each class, background left out; zero in empty slots.
        """
        boxes, sizes = slots.pack(proposals), image_sizes[slots.images]
        logits, deltas = self.stages[0](pool_slots(features, boxes, slots, BOX_POOL_SIDE))
        total = logits
        for head, stds in zip(self.stages[1:], STAGE_STDS, strict=False):
            best = logits[:, :-1].argmax(dim=1)
            boxes = decode_deltas(boxes, take_boxes(deltas, best[:, None])[:, 0], stds, sizes)
            logits, deltas = head(pool_slots(features, boxes, slots, BOX_POOL_SIDE))
            total = total + logits
        # The mean of the logits, not of the probabilities.
        scores = (total / len(self.stages)).softmax(dim=1)[:, :-1]
        return slots.unpack(boxes), slots.unpack(deltas), slots.unpack(scores)


def select_detections(
    boxes: Tensor,
    deltas: Tensor,
    scores: Tensor,
    image_sizes: Tensor,
    scale_factors: Tensor,
    settings: TestSettings,
    every_candidate: bool,
) -> BoxDetections:
    """The final boxes: decode per class, drop low scores, NMS per class in *image* pixels, keep the best.

    Args:
        boxes: ``(B, P, 4)`` the last stage's RoIs, input pixels.
        deltas: ``(B, P, K, 4)`` of the last stage.
        scores: ``(B, P, K)`` of each class, background left out; zero in empty slots.
        image_sizes: ``(B, 2)`` ``(H, W)`` in the input before padding.
        scale_factors: ``(B, 2)`` (x, y) from image to input pixels.
        settings: score and NMS thresholds, and how many detections are kept.
        every_candidate: NMS looks at all that have the score, not at the best of them: exact, and seldom needed.
    """
    B, P, K = scores.shape
    decoded = decode_deltas(boxes[:, :, None], deltas, STAGE_STDS[-1], image_sizes[:, None, None])
    boxes_image = (decoded / scale_factors.repeat(1, 2)[:, None, None]).flatten(1, 2)
    # A key of its own for each candidate: first by score, whose bits are in the order of its values, then by place.
    # So the order is the same on every device; zero where there is no candidate.
    scores = scores.flatten(1)
    eligible = scores > settings.score_threshold
    last = P * K - 1
    place = last - torch.arange(P * K, device=scores.device)
    keys = ((scores.view(torch.int32).long() << 32) | place).masked_fill(~eligible, 0)
    if every_candidate:
        keys = keys.view(B, P, K).transpose(1, 2).sort(dim=2, descending=True).values  # a class is a group
    else:
        count = min(P * K, max(CANDIDATES, 2 * settings.max_detections))
        keys = keys.topk(count, dim=1).values[:, None]  # a group is an image
    index = last - (keys & 0xFFFFFFFF)
    largest = boxes_image.masked_fill(~eligible[..., None], 0.0).amax(dim=(1, 2))
    candidates = take_boxes(boxes_image, index.flatten(1)).view(*index.shape, 4)
    moved = moved_apart(candidates, index % K, largest)
    keep = nms_groups(moved.flatten(0, 1), (keys > 0).flatten(0, 1), settings.nms_iou).view_as(keys)
    kept = keys.masked_fill(~keep, 0).flatten(1)
    kept = F.pad(kept, (0, max(0, settings.max_detections - kept.shape[1]))).topk(settings.max_detections, dim=1).values
    valid = kept > 0
    index = (last - (kept & 0xFFFFFFFF)).masked_fill(~valid, 0)
    left_out = eligible.sum(dim=1) > keys.flatten(1).shape[1]
    return BoxDetections(
        take_boxes(boxes_image, index).masked_fill(~valid[..., None], 0.0),
        scores.gather(1, index).masked_fill(~valid, 0.0),
        (index % K).masked_fill(~valid, 0),
        valid,
        final=~left_out | valid.all(dim=1),
    )
