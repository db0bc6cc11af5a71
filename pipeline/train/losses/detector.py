"""From a batch to the losses of the whole detector."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Generator, Tensor, nn

from pipeline.errors import RunError
from pipeline.model.detector import Detector
from pipeline.model.roi import ROI_LEVELS
from pipeline.model.rpn import level_anchors, propose
from pipeline.model.variants import TestSettings
from pipeline.train.losses.assign import Objects
from pipeline.train.losses.cascade import cascade_losses
from pipeline.train.losses.rpn import rpn_losses
from pipeline.train.losses.sampling import PUBLISHED, Sampling, image_generators
from pipeline.train.sample.sample import Batch


class NonFiniteLoss(RunError):
    """A part of the loss is NaN or infinite."""


class DetectorLoss(nn.Module):
    """A detector that answers with its losses; what to wrap in DDP.

    Every parameter takes part in every batch, also in one without objects, so DDP needs no
    ``find_unused_parameters``. Under autocast the layers run in the lower precision, RoI pooling and all that
    is done with the heads' outputs in float32.

    The box heads' norms normalise over the sampled RoIs of a batch, up to 512 an image; the published detectors
    synchronise them over workers (see `sync_batch_norm`). No batch is too small for them: there is always a RoI,
    and a RoI has 49 positions. A batch with nothing to sample leaves one empty RoI in their running statistics.

    Args:
        detector: on its device.
        sampling: how much of an image is looked at.
    """

    def __init__(self, detector: Detector, sampling: Sampling = PUBLISHED) -> None:
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
        objects = [Objects.of(target) for target in batch.targets]
        generators = image_generators(batch.image_ids, generator)
        features = detector.neck(detector.backbone(batch.images))
        outputs, grids = detector.rpn.head(features), level_anchors(features)
        losses = rpn_losses(outputs, grids, batch.image_sizes, objects, generators, self._sampling.anchors)
        with torch.no_grad():
            proposals = [boxes for boxes, _ in propose(outputs, grids, batch.image_sizes, self._proposals)]
        pyramid = [feature.float() for feature in features[:ROI_LEVELS]]
        return losses | cascade_losses(
            detector.box_heads,
            detector.mask_heads,
            pyramid,
            proposals,
            batch.image_sizes,
            objects,
            generators,
            self._sampling.rois,
        )


def check_finite(losses: Mapping[str, Tensor], batch: Batch) -> None:
    """Check that every part of the loss is a number; waits for the device once.

    Raises:
        NonFiniteLoss: naming the parts and the images.
    """
    values = torch.stack([loss.detach() for loss in losses.values()]).tolist()
    bad = {name: value for name, value in zip(losses, values, strict=True) if not math.isfinite(value)}
    if not bad:
        return
    parts = ", ".join(f"{name} = {value}" for name, value in bad.items())
    images = ", ".join(map(str, batch.image_ids))
    raise NonFiniteLoss(
        f"loss is not finite ({parts}) in the batch of image ids {images}: look at these images and their "
        "annotations; if they are sound, lower the learning rate or clip gradients"
    )
