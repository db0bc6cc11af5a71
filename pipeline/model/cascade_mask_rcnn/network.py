"""What Cascade Mask R-CNN computes, for `pipeline.model.architecture`."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from pipeline.model.architecture import BackboneLayouts, Layouts, Network
from pipeline.model.cascade_mask_rcnn.detector import CascadeMaskRCNN
from pipeline.model.cascade_mask_rcnn.initialise import initialise, initialise_class_layers
from pipeline.model.cascade_mask_rcnn.layouts import (
    BACKBONE_LAYOUTS,
    BACKBONE_SIZES,
    covered_by_classifier,
    detect_layout,
    infer_backbone,
    infer_variant,
    to_native,
)
from pipeline.model.cascade_mask_rcnn.losses.detector import DetectorLoss
from pipeline.model.cascade_mask_rcnn.roi import fold_batch_norm
from pipeline.model.cascade_mask_rcnn.swin import PadThenShiftBlock

# Parts of a parameter's name, as in the published config. Biases outside of norms do decay, as there. The norms of
# the RoI heads do not; the published pattern misses them, because its names call them "bn".
NO_DECAY = ("norm", "relative_position_bias_table")


def decays(name: str) -> bool:
    """Whether weight decay applies to the parameter of this name."""
    return not any(part in name for part in NO_DECAY)


def compiled(detector: CascadeMaskRCNN) -> Sequence[nn.Module]:
    """The parts whose inputs keep their shapes from image to image, but for the number of RoIs."""
    return detector.backbone, detector.neck, detector.rpn, detector.box_heads, detector.mask_heads


NETWORK = Network(
    build=CascadeMaskRCNN,
    loss=DetectorLoss,
    initialise=initialise,
    initialise_class_layers=initialise_class_layers,
    decays=decays,
    layouts=Layouts(
        detect_layout,
        to_native,
        infer_variant,
        BackboneLayouts(BACKBONE_LAYOUTS, BACKBONE_SIZES, infer_backbone, covered_by_classifier),
    ),
    recomputed=(PadThenShiftBlock,),
    fold_batch_norm=fold_batch_norm,
    compiled=compiled,
)
