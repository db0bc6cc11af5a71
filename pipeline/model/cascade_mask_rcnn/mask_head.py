"""The three mask heads (He et al. 2017, arXiv 1703.06870); their probabilities are averaged.

B images, D detections of an image, R RoIs of the whole batch, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.model.cascade_mask_rcnn.roi import RoIConvs, Slots, pool_slots
from pipeline.model.cascade_mask_rcnn.variants import CascadeVariant

MASK_POOL_SIDE = 14
MASK_SIDE = 2 * MASK_POOL_SIDE
NUM_STAGES = 3


class MaskHead(nn.Module):
    """Convolutions, a deconvolution to twice the side, then one mask per class."""

    def __init__(self, variant: CascadeVariant) -> None:
        super().__init__()
        channels = variant.mask_channels if variant.mask_convs else variant.fpn_channels
        self.convs: nn.Module = RoIConvs(variant.fpn_channels, channels, variant.mask_convs, batch_norm=False)
        self.upsample = nn.ConvTranspose2d(channels, channels, 2, stride=2)
        self.predict = nn.Conv2d(channels, variant.num_classes, 1)

    def forward(self, pooled: Tensor, labels: Tensor) -> Tensor:
        """Logits of each RoI's own class: (R, C, 14, 14), int64 (R,) -> float32 ``(R, 28, 28)``.

        Only that class's filter is applied; the others' masks are never looked at.
        """
        x = self.upsample(self.convs(pooled)).relu_().float()
        assert self.predict.bias is not None
        weight, bias = self.predict.weight[labels].flatten(1), self.predict.bias[labels]
        logits = torch.einsum("rchw,rc->rhw", x, weight)
        return logits.float() + bias[:, None, None]


class CascadeMaskHeads(nn.Module):
    """All stages see the same RoIs; the mean is over probabilities (the box heads average logits)."""

    def __init__(self, variant: CascadeVariant) -> None:
        super().__init__()
        self.stages = nn.ModuleList(MaskHead(variant) for _ in range(NUM_STAGES))

    def forward(self, features: list[Tensor], boxes: Tensor, labels: Tensor, slots: Slots) -> Tensor:
        """Mask probabilities over each box's own area.

        Args:
            features: P2..P5, ``(B, C, H, W)``.
            boxes: float32 ``(B, D, 4)`` in input pixels.
            labels: int64 ``(B, D)``.
            slots: which of them there are.

        Returns:
            float32 ``(B, D, 28, 28)``, zero in empty slots.
        """
        pooled = pool_slots(features, slots.pack(boxes), slots, MASK_POOL_SIDE)
        own = slots.pack(labels)
        total = sum(stage(pooled, own).sigmoid() for stage in self.stages)
        return slots.unpack(torch.as_tensor(total) / len(self.stages))
