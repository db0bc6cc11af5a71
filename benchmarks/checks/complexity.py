"""Parameters and multiply-adds by part: ``python -m benchmarks.checks.complexity [swin_t swin_s swin_b]``.

Counted: every convolution, linear layer and matrix product of the forward pass (attention's two products
included) for one image of 1280x800, 1000 proposals through each box head, 100 boxes through each mask head.
Not counted: norms, activations, softmax, RoIAlign, NMS. The published figures are mmdet's ``get_flops`` of the
same input and counts; that tool leaves attention's products out, counts norms and activations, and applies all 80
mask filters to each box where we apply the one of its class.
"""

from __future__ import annotations

import sys

import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline.model.cascade_mask_rcnn.cascade import BOX_POOL_SIDE
from pipeline.model.cascade_mask_rcnn.detector import CascadeMaskRCNN
from pipeline.model.cascade_mask_rcnn.mask_head import MASK_POOL_SIDE
from pipeline.model.cascade_mask_rcnn.roi import ROI_LEVELS
from pipeline.model.cascade_mask_rcnn.variants import PUBLISHED_VARIANTS, CascadeVariant

VARIANTS = {variant.name: variant for variant in PUBLISHED_VARIANTS}
INPUT_SIZE = (800, 1280)
NUM_PROPOSALS = 1000
NUM_MASKS = 100
# (parameters, multiply-adds) in the README of github.com/SwinTransformer/Swin-Transformer-Object-Detection
PUBLISHED = {"swin_t": ("86 M", "745 G"), "swin_s": ("107 M", "838 G"), "swin_b": ("145 M", "982 G")}


def multiply_adds(variant: CascadeVariant) -> dict[str, int]:
    """Multiply-adds of each part, on the meta device: no memory, no time."""
    counts: dict[str, int] = {}
    with torch.device("meta"), torch.no_grad():
        model = CascadeMaskRCNN(variant).eval()
        image = torch.empty(1, 3, *INPUT_SIZE)
        box_rois = torch.empty(NUM_PROPOSALS, variant.fpn_channels, BOX_POOL_SIDE, BOX_POOL_SIDE)
        mask_rois = torch.empty(NUM_MASKS, variant.fpn_channels, MASK_POOL_SIDE, MASK_POOL_SIDE)
        labels = torch.empty(NUM_MASKS, dtype=torch.int64)
        with FlopCounterMode(display=False) as counter:
            maps = model.backbone(image, model.backbone.windows(INPUT_SIZE))
        counts["backbone"] = counter.get_total_flops() // 2
        with FlopCounterMode(display=False) as counter:
            pyramid = model.neck(maps)
        counts["FPN"] = counter.get_total_flops() // 2
        with FlopCounterMode(display=False) as counter:
            model.rpn.head(pyramid)
        counts["RPN"] = counter.get_total_flops() // 2
        with FlopCounterMode(display=False) as counter:
            for box_head in model.box_heads.stages:
                box_head(box_rois)
        counts["box heads"] = counter.get_total_flops() // 2
        with FlopCounterMode(display=False) as counter:
            for mask_head in model.mask_heads.stages:
                mask_head(mask_rois, labels)
        counts["mask heads"] = counter.get_total_flops() // 2
    assert len(pyramid) == ROI_LEVELS + 1
    return counts


def parameters(variant: CascadeVariant) -> dict[str, int]:
    """Parameters of each part, BatchNorm's running statistics not counted."""
    with torch.device("meta"):
        model = CascadeMaskRCNN(variant)
    parts = {
        "backbone": model.backbone,
        "FPN": model.neck,
        "RPN": model.rpn,
        "box heads": model.box_heads,
        "mask heads": model.mask_heads,
    }
    return {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}


def main(names: list[str]) -> None:
    """Print one table per variant."""
    print(
        f"input {INPUT_SIZE[1]}x{INPUT_SIZE[0]}, {NUM_PROPOSALS} proposals, {NUM_MASKS} masks; G = 10^9 multiply-adds"
    )
    for name in names:
        params, macs = parameters(VARIANTS[name]), multiply_adds(VARIANTS[name])
        print(f"\n{name:12s}{'parameters':>14s}{'multiply-adds':>16s}")
        for part in macs:
            print(f"{part:12s}{params[part] / 1e6:12.2f} M{macs[part] / 1e9:14.1f} G")
        print(f"{'all':12s}{sum(params.values()) / 1e6:12.2f} M{sum(macs.values()) / 1e9:14.1f} G")
        print(f"{'published':12s}{PUBLISHED[name][0]:>14s}{PUBLISHED[name][1]:>16s}")


if __name__ == "__main__":
    main(sys.argv[1:] or list(VARIANTS))
