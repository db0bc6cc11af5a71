"""From a batch to the losses of the whole detector."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn

from pipeline.model.batch import Batch
from pipeline.model.cascade_mask_rcnn.detector import CascadeMaskRCNN
from pipeline.model.cascade_mask_rcnn.losses.assign import ImageTargets
from pipeline.model.cascade_mask_rcnn.losses.cascade import cascade_losses
from pipeline.model.cascade_mask_rcnn.losses.rpn import rpn_losses
from pipeline.model.cascade_mask_rcnn.losses.sampling import image_generators
from pipeline.model.cascade_mask_rcnn.roi import ROI_LEVELS
from pipeline.model.cascade_mask_rcnn.rpn import level_anchors, propose
from pipeline.model.settings import PUBLISHED_SAMPLING, SamplingConfig, TestSettings


class DetectorLoss(nn.Module):
    """A detector that answers with its losses; what to wrap in DDP.

    Every parameter takes part in every batch, also in one without objects, so DDP needs no
    ``find_unused_parameters``. Under autocast the layers run in the lower precision, RoI pooling and all that
    is done with the heads' outputs in float32.

    The box heads' norms normalise over the sampled RoIs of a batch, up to 512 an image; the published detectors
    synchronise them over workers, and so does training. No batch is too small for them: there is always a RoI, and a
    RoI has 49 positions. A batch with nothing to sample leaves one empty RoI in their running statistics.

    Args:
        detector: on its device.
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
        features = detector.neck(detector.backbone(batch.images))
        outputs, grids = detector.rpn.head(features), level_anchors(features)
        losses = rpn_losses(outputs, grids, batch.image_sizes, objects, generators, self._sampling.anchor_quota)
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
            self._sampling.roi_quota,
        )
