"""The losses of the region proposal network (Ren et al. 2015, arXiv 1506.01497), as published for Swin.

B images, A anchors of all levels together, P pairs of boxes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from pipeline.model.cascade_mask_rcnn.boxes import encode_deltas
from pipeline.model.cascade_mask_rcnn.losses.assign import UNUSED, ImageTargets, Rule, assign
from pipeline.model.cascade_mask_rcnn.losses.sampling import sample
from pipeline.model.normalisers import per_worker
from pipeline.model.settings import Quota

RULE = Rule(positive=0.7, negative=0.3, best_match=0.3)
SMOOTH_L1_BETA = 1 / 9


def rpn_losses(
    outputs: Sequence[tuple[Tensor, Tensor]],
    grids: Sequence[Tensor],
    image_sizes: Tensor,
    objects: Sequence[ImageTargets],
    generators: Sequence[Generator],
    quota: Quota,
) -> dict[str, Tensor]:
    """Objectness and boxes of sampled anchors, each summed and divided by the number of sampled anchors.

    Args:
        outputs: per level, logits ``(B, A)`` and deltas ``(B, A, 4)``.
        grids: per level, anchors ``(A, 4)``.
        image_sizes: ``(B, 2)``, ``(H, W)`` before padding.
        objects: B.
        generators: B.
        quota: anchors of each image.

    Returns:
        ``rpn_class`` and ``rpn_box``, float32 scalars.
    """
    logits = torch.cat([level for level, _ in outputs], dim=1)
    deltas = torch.cat([level for _, level in outputs], dim=1)
    anchors = torch.cat(list(grids))
    image_logits, truths, found_deltas, wanted_deltas = [], [], [], []
    for i, (size, image_objects, generator) in enumerate(zip(image_sizes, objects, generators, strict=True)):
        assigned = assign_anchors(anchors, size, image_objects)
        positives, negatives = sample(assigned, quota, generator)
        image_logits += [logits[i, positives], logits[i, negatives]]
        truths += [torch.ones_like(image_logits[-2]), torch.zeros_like(image_logits[-1])]
        found_deltas.append(deltas[i, positives])
        wanted_deltas.append(encode_deltas(anchors[positives], image_objects.boxes[assigned[positives]]))
    sampled = torch.cat(image_logits)
    (count,) = per_worker(len(sampled), device=sampled.device)
    objectness = F.binary_cross_entropy_with_logits(sampled, torch.cat(truths), reduction="sum")
    boxes = smooth_l1(torch.cat(found_deltas), torch.cat(wanted_deltas))
    return {"rpn_class": objectness / count, "rpn_box": boxes / count}


def assign_anchors(anchors: Tensor, image_size: Tensor, objects: ImageTargets) -> Tensor:
    """`assign` for anchors ``(A, 4)``: those that cross the image's border are `UNUSED` (``allowed_border=0``)."""
    inside = (anchors[:, :2] >= 0).all(dim=1) & (anchors[:, 2:] < image_size.flip(0)).all(dim=1)
    assigned = torch.full((len(anchors),), UNUSED, device=anchors.device)
    assigned[inside] = assign(anchors[inside], objects, RULE)
    return assigned


def smooth_l1(deltas: Tensor, targets: Tensor) -> Tensor:
    """Sum over all coordinates of ``(P, 4)``: quadratic below `SMOOTH_L1_BETA`, linear above (arXiv 1504.08083)."""
    return F.smooth_l1_loss(deltas, targets, beta=SMOOTH_L1_BETA, reduction="sum")
