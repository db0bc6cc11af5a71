"""From a batch to the losses of the whole detector; those of the region proposal network stand here too.

RPN: Ren et al. 2015, arXiv 1506.01497, as published for Swin. B images, A anchors of all levels together, P pairs of
boxes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from pipeline.model.batch import Batch
from pipeline.model.cascade_mask_rcnn.boxes import encode_deltas
from pipeline.model.cascade_mask_rcnn.detector import CascadeMaskRCNN
from pipeline.model.cascade_mask_rcnn.losses.assign import UNUSED, ImageTargets, Rule, assign
from pipeline.model.cascade_mask_rcnn.losses.cascade import cascade_losses
from pipeline.model.cascade_mask_rcnn.losses.sampling import image_generators, sample
from pipeline.model.cascade_mask_rcnn.roi import ROI_LEVELS
from pipeline.model.cascade_mask_rcnn.rpn import propose
from pipeline.model.normalisers import per_worker
from pipeline.model.settings import PUBLISHED_SAMPLING, Quota, SamplingConfig, TestSettings


class DetectorLoss(nn.Module):
    """A detector that answers with its losses; what to wrap in DDP.

    Every parameter takes part in every batch, also in one without objects, so DDP needs no
    ``find_unused_parameters``. Under autocast the layers run in the lower precision, RoI pooling and all that
    is done with the heads' outputs in float32.

    The box heads' norms normalise over the sampled RoIs of a batch, up to 512 an image; the published detectors
    synchronise them over workers, and so does training. No batch is too small for them: there is always a RoI, and a
    RoI has 49 positions. A batch with nothing to sample leaves one empty RoI in their running statistics.

    Args:
        detector: on its device; its weights are what is trained.
        sampling: how much of an image is looked at.
    """

    def __init__(self, detector: CascadeMaskRCNN, sampling: SamplingConfig = PUBLISHED_SAMPLING) -> None:
        super().__init__()
        self.detector = detector
        self._sampling = sampling
        count = sampling.proposals
        self._proposals = TestSettings(proposals_per_level=count, proposals=count)

    def forward(self, batch: Batch, generator: Generator) -> dict[str, Tensor]:
        """The weighted parts of the loss; the total is their sum.

        Args:
            batch: on the model's device.
            generator: decides which anchors and RoIs are sampled (see `image_generators`); on any device.

        Returns:
            ``rpn_class``, ``rpn_box``, then ``stage1_class``, ``stage1_box``, ``stage1_mask`` to
            ``stage3_mask``: float32 scalars. With several workers, their mean is that of the whole batch.
        """
        detector = self.detector
        objects = [ImageTargets.of(target) for target in batch.targets]
        generators = image_generators(batch.image_ids, generator)
        height, width = batch.images.shape[-2:]
        plan = detector.plan((height, width))
        features = detector.neck(detector.backbone(batch.images, plan.windows))
        outputs, grids = detector.rpn.head(features), plan.anchors
        losses = rpn_losses(outputs, grids, batch.image_sizes, objects, generators, self._sampling.anchor_quota)
        with torch.no_grad():
            found = propose(outputs, grids, batch.image_sizes, self._proposals)
            proposals = [boxes[valid] for boxes, valid in zip(found.boxes, found.valid, strict=True)]
        pyramid = [feature.float() for feature in features[:ROI_LEVELS]]
        return losses | cascade_losses(
            detector.box_heads,
            detector.mask_heads,
            pyramid,
            proposals,
            batch.image_sizes,
            objects,
            generators,
            self._sampling.roi_quota,
        )


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
        objects: of each image, what its anchors are to find.
        generators: one an image, which decides what is sampled of it.
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
