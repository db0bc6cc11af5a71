"""The losses of the cascade's stages, boxes and masks (Cai & Vasconcelos 2018; He et al. 2017).

R RoIs of the whole batch, P of them positive, K object classes, S side of a mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from pipeline.model.boxes import apply_deltas
from pipeline.model.cascade import BOX_POOL_SIDE, STAGE_STDS, CascadeBoxHeads
from pipeline.model.mask_head import MASK_POOL_SIDE, MASK_SIDE, CascadeMaskHeads
from pipeline.model.roi import pool_rois
from pipeline.train.losses.assign import Objects
from pipeline.train.losses.boxes import giou
from pipeline.train.losses.mask_targets import mask_targets
from pipeline.train.losses.sampling import Quota
from pipeline.train.losses.stage_samples import NO_LABEL, StageSamples, draw_samples, refine
from pipeline.train.normalisers import per_worker

STAGE_IOUS = (0.5, 0.6, 0.7)
STAGE_WEIGHTS = (1.0, 0.5, 0.25)
GIOU_WEIGHT = 10.0

Stds = tuple[float, float, float, float]


def cascade_losses(
    box_heads: CascadeBoxHeads,
    mask_heads: CascadeMaskHeads,
    features: Sequence[Tensor],
    proposals: Sequence[Tensor],
    image_sizes: Tensor,
    objects: Sequence[Objects],
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
        objects: B.
        generators: B.
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


def box_sum(samples: StageSamples, deltas: Tensor, stds: Stds, objects: Sequence[Objects]) -> Tensor:
    """1 - GIoU of the positives' boxes, moved by their own class's deltas ``(R, K, 4)`` and not clipped; summed."""
    row = samples.positive.nonzero()[:, 0]
    found = apply_deltas(samples.boxes[row], deltas[row, samples.labels[row]], stds)
    images, owners = samples.images[row], samples.owners[row]
    wanted = torch.cat([image.boxes[owners[images == i]] for i, image in enumerate(objects)])
    return giou(found, wanted)


def mask_sum(
    mask_head: nn.Module, features: Sequence[Tensor], samples: StageSamples, objects: Sequence[Objects]
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
