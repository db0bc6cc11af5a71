"""What Cascade Mask R-CNN computes, for `pipeline.model.architecture`.

The initial weights are those of mmdet 2.x. They matter: scores of an untrained head must be even, and its boxes must
stay where the proposals are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import nn

from pipeline.model.architecture import BackboneLayouts, Layouts, Network
from pipeline.model.cascade_mask_rcnn.cascade import BoxHead
from pipeline.model.cascade_mask_rcnn.detector import CascadeMaskRCNN
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
from pipeline.model.cascade_mask_rcnn.mask_head import MaskHead
from pipeline.model.cascade_mask_rcnn.roi import fold_batch_norm
from pipeline.model.cascade_mask_rcnn.swin import PadThenShiftBlock, WindowAttention

# Parts of a parameter's name, as in the published config. Biases outside of norms do decay, as there. The norms of
# the RoI heads do not; the published pattern misses them, because its names call them "bn".
NO_DECAY = ("norm", "relative_position_bias_table")
_TOKEN_STD = 0.02
_RPN_STD = 0.01
_CLASS_STD = 0.01
_BOX_STD = 0.001


def decays(name: str) -> bool:
    """Whether weight decay applies to the parameter of this name."""
    return not any(part in name for part in NO_DECAY)


def float32(detector: CascadeMaskRCNN) -> Sequence[nn.Module]:
    """The last layers: of 268,000 objectness logits in bf16 most would be equal to others."""
    heads = [layer for box, mask in _stages(detector) for layer in (box.classify, box.regress, mask.predict)]
    return [detector.rpn.objectness, detector.rpn.deltas, *heads]


def fuse_attention(detector: CascadeMaskRCNN) -> None:
    """In the backbone, the only part that attends; its biases are made now, for all forwards."""
    for module in detector.backbone.modules():
        if isinstance(module, WindowAttention):
            module.fused_attn = True
    detector.backbone.freeze_biases(next(detector.backbone.parameters()).dtype)


def initialise(detector: CascadeMaskRCNN, seed: int) -> None:
    """Set all weights of a detector that need no training data, the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _initialise_backbone(detector.backbone)
        for module in detector.neck.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                _zero_bias(module)
        for conv in (detector.rpn.conv, detector.rpn.objectness, detector.rpn.deltas):
            _normal(conv, _RPN_STD)
        initialise_roi_heads(detector)


def initialise_roi_heads(detector: CascadeMaskRCNN) -> None:
    """All layers of box and mask heads, from the global random state."""
    for stage in [*detector.box_heads.stages, *detector.mask_heads.stages]:
        for module in stage.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                _zero_bias(module)
    for box, _ in _stages(detector):
        nn.init.xavier_uniform_(box.fc.weight)
        _zero_bias(box.fc)
    initialise_class_layers(detector)


def initialise_class_layers(detector: CascadeMaskRCNN) -> list[str]:
    """The layers whose outputs belong to classes, from the global random state; the names of their weights."""
    names = []
    for i, (box, mask) in enumerate(_stages(detector)):
        _normal(box.classify, _CLASS_STD)
        _normal(box.regress, _BOX_STD)
        nn.init.kaiming_normal_(mask.predict.weight, mode="fan_out", nonlinearity="relu")
        _zero_bias(mask.predict)
        layers = (f"box_heads.stages.{i}.classify", f"box_heads.stages.{i}.regress", f"mask_heads.stages.{i}.predict")
        names += [f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]
    return names


def _initialise_backbone(backbone: nn.Module) -> None:
    for module in backbone.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=_TOKEN_STD)
            _zero_bias(module)
        elif isinstance(module, nn.Conv2d):
            module.reset_parameters()
    for name, parameter in backbone.named_parameters():
        if name.endswith("relative_position_bias_table"):
            nn.init.trunc_normal_(parameter, std=_TOKEN_STD)


def _stages(detector: CascadeMaskRCNN) -> list[tuple[BoxHead, MaskHead]]:
    pairs = zip(detector.box_heads.stages, detector.mask_heads.stages, strict=True)
    return cast(list[tuple[BoxHead, MaskHead]], list(pairs))


def _normal(layer: nn.Module, std: float) -> None:
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    nn.init.normal_(layer.weight, std=std)
    _zero_bias(layer)


def _zero_bias(layer: nn.Module) -> None:
    if isinstance(layer.bias, nn.Parameter):
        nn.init.zeros_(layer.bias)


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
    float32=float32,
    fuse_attention=fuse_attention,
)
