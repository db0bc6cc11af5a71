"""The losses of the cascade's stages, boxes and masks (Cai & Vasconcelos 2018; He et al. 2017).

R RoIs of the whole batch, P of them positive, K object classes, S side of a mask; of one image G objects, and H W the
size of the input before padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from torchvision.ops import generalized_box_iou_loss, roi_align

from pipeline.model.cascade_mask_rcnn.boxes import Stds, apply_deltas
from pipeline.model.cascade_mask_rcnn.cascade import BOX_POOL_SIDE, STAGE_STDS, CascadeBoxHeads
from pipeline.model.cascade_mask_rcnn.losses.assign import ImageTargets
from pipeline.model.cascade_mask_rcnn.losses.sampling import NO_LABEL, StageSamples, draw_samples, refine
from pipeline.model.cascade_mask_rcnn.mask_head import MASK_POOL_SIDE, MASK_SIDE, CascadeMaskHeads
from pipeline.model.cascade_mask_rcnn.roi import pool_rois
from pipeline.model.normalisers import per_worker
from pipeline.model.settings import Quota

STAGE_IOUS = (0.5, 0.6, 0.7)
STAGE_WEIGHTS = (1.0, 0.5, 0.25)
GIOU_WEIGHT = 10.0

_MASKS_AT_ONCE = 32  # objects whose masks are held as float32 at a time


def cascade_losses(
    box_heads: CascadeBoxHeads,
    mask_heads: CascadeMaskHeads,
    features: Sequence[Tensor],
    proposals: Sequence[Tensor],
    image_sizes: Tensor,
    objects: Sequence[ImageTargets],
    generators: Sequence[Generator],
    quota: Quota,
) -> dict[str, Tensor]:
    """Class, box and mask loss of each stage, weighted; a stage samples from what the one before it refined.

    Args:
        box_heads: their stages are used one by one.
        mask_heads: alike; every stage learns from its own positives.
        features: P2..P5, float32 ``(B, C, H, W)``.
        proposals: per image ``(n, 4)`` xyxy in input pixels, without gradient.
        image_sizes: ``(B, 2)``, ``(H, W)`` before padding.
        objects: of each image, what its RoIs are to find.
        generators: one an image, which decides what is sampled of it.
        quota: RoIs that each stage draws of an image.

    Returns:
        ``stage1_class``, ``stage1_box``, ``stage1_mask`` to ``stage3_mask``, float32 scalars.
    """
    losses: dict[str, Tensor] = {}
    stages = zip(box_heads.stages, mask_heads.stages, STAGE_STDS, STAGE_IOUS, STAGE_WEIGHTS, strict=True)
    for stage, (box_head, mask_head, stds, min_iou, weight) in enumerate(stages, start=1):
        num_classes = cast(int, box_head.num_classes)
        samples = draw_samples(proposals, objects, min_iou, num_classes, generators, quota)
        logits, deltas = box_head(pool_rois(features, samples.boxes, samples.images, BOX_POOL_SIDE))
        sampled, pixels = per_worker(
            (samples.labels != NO_LABEL).sum(), samples.positive.sum() * MASK_SIDE**2, device=logits.device
        )
        classes = F.cross_entropy(logits, samples.labels, ignore_index=NO_LABEL, reduction="sum")
        losses[f"stage{stage}_class"] = classes * (weight / sampled)
        losses[f"stage{stage}_box"] = box_sum(samples, deltas, stds, objects) * (weight * GIOU_WEIGHT / sampled)
        losses[f"stage{stage}_mask"] = mask_sum(mask_head, features, samples, objects) * (weight / pixels)
        if stage < len(STAGE_STDS):
            with torch.no_grad():
                proposals = refine(samples, logits, deltas, stds, image_sizes)
    return losses


def box_sum(samples: StageSamples, deltas: Tensor, stds: Stds, objects: Sequence[ImageTargets]) -> Tensor:
    """1 - GIoU of the positives' boxes, moved by their own class's deltas ``(R, K, 4)`` and not clipped; summed."""
    row = samples.positive.nonzero()[:, 0]
    found = apply_deltas(samples.boxes[row], deltas[row, samples.labels[row]], stds)
    images, owners = samples.images[row], samples.owners[row]
    wanted = torch.cat([image.boxes[owners[images == i]] for i, image in enumerate(objects)])
    return giou(found, wanted)


def mask_sum(
    mask_head: nn.Module, features: Sequence[Tensor], samples: StageSamples, objects: Sequence[ImageTargets]
) -> Tensor:
    """Binary cross entropy of the positives' masks, of their own class only, summed over RoIs and pixels."""
    row = samples.positive.nonzero()[:, 0]
    boxes, images, owners = samples.boxes[row], samples.images[row], samples.owners[row]
    targets = [
        mask_targets(image.masks, boxes[images == i], owners[images == i], MASK_SIDE) for i, image in enumerate(objects)
    ]
    # Without a positive the head still runs, on any one RoI, so that its parameters get a gradient of zero.
    used = row if len(row) else torch.zeros(1, dtype=torch.int64, device=row.device)
    pooled = pool_rois(features, samples.boxes[used], samples.images[used], MASK_POOL_SIDE)
    logits = mask_head(pooled, samples.labels[row] if len(row) else used)[: len(row)]
    return F.binary_cross_entropy_with_logits(logits, torch.cat(targets), reduction="sum")


def giou(boxes: Tensor, targets: Tensor) -> Tensor:
    """Sum over pairs of boxes ``(P, 4)`` of 1 - GIoU, each in [0, 2] (Rezatofighi et al. 2019, arXiv 1902.09630)."""
    return generalized_box_iou_loss(boxes, targets, reduction="sum")


def mask_targets(masks: Tensor, boxes: Tensor, owners: Tensor, side: int) -> Tensor:
    """What a mask head shall answer for a RoI: its object's mask, cut out and brought to the head's grid.

    RoIAlign of bitmaps, then half or more counts as inside, as mmdet and detectron2 do.

    Args:
        masks: bool ``(G, H, W)``.
        boxes: ``(P, 4)`` xyxy in pixels of the masks.
        owners: int64 ``(P,)``, the object of each RoI.
        side: S, of the head's grid.

    Returns:
        float32 ``(P, S, S)`` of 0 and 1.
    """
    targets = boxes.new_zeros((len(boxes), side, side))
    for start in range(0, len(masks), _MASKS_AT_ONCE):
        members = ((owners >= start) & (owners < start + _MASKS_AT_ONCE)).nonzero()[:, 0]
        if len(members) == 0:
            continue
        bitmaps = masks[start : start + _MASKS_AT_ONCE, None].float()
        rois = torch.cat([(owners[members] - start)[:, None].to(boxes), boxes[members]], dim=1)
        targets[members] = roi_align(bitmaps, rois, side, sampling_ratio=0, aligned=True)[:, 0]
    return (targets >= 0.5).float()
