"""A small detector of random weights that finds something everywhere, for runs whose content does not matter."""

from __future__ import annotations

import torch

from pipeline.model.cascade_mask_rcnn.detector import CascadeMaskRCNN
from pipeline.model.cascade_mask_rcnn.variants import CascadeVariant
from pipeline.model.categories import Category
from pipeline.model.files.checkpoints import Checkpoint
from pipeline.model.settings import TestSettings

VARIANT = CascadeVariant(
    "demo",
    embed_dim=32,
    depths=(2, 2, 2, 2),
    num_heads=(1, 2, 4, 8),
    num_classes=4,
    fpn_channels=64,
    box_channels=64,
    box_fc=128,
    mask_channels=64,
)
CATEGORIES = tuple(Category(i + 1, name) for i, name in enumerate(("ball", "tile", "kite", "pebble")))
SETTINGS = TestSettings(
    short_side=320, long_side=640, proposals=300, score_threshold=0.3, nms_iou=0.3, max_detections=8
)
MODEL_SEED = 10  # of the first few, one whose guesses are spread over the classes


def random_model(seed: int) -> Checkpoint:
    """A detector that has learnt nothing, scaled so that something comes out of it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        detector = CascadeMaskRCNN(VARIANT)
        for part in (detector.neck, detector.rpn, detector.box_heads, detector.mask_heads):
            for name, weight in part.named_parameters():
                _scale(name, weight)
    return Checkpoint(detector.state_dict(), VARIANT, CATEGORIES, SETTINGS, {"weights": f"random, seed {seed}"})


def _scale(name: str, weight: torch.Tensor) -> None:
    """torch's own initial values let the signal fade from layer to layer, so that all boxes would look the same."""
    if weight.dim() > 1:
        torch.nn.init.kaiming_normal_(weight, nonlinearity="relu")
    with torch.no_grad():
        if "regress" in name or "deltas" in name:
            weight *= 0.1  # boxes stay near their anchors
        elif "classify.weight" in name or "predict.weight" in name:
            weight -= weight.mean(dim=1, keepdim=True)  # else what all features have in common decides
        elif "upsample.weight" in name:
            weight.copy_(weight[..., :1, :1].expand_as(weight))  # else the masks are chequered
        elif "predict.bias" in name:
            weight += 0.5
