"""Cascade Mask R-CNN with a Swin backbone, assembled from its parts.

B images, H W padded input size, A anchors of one level, P proposals and D detections of an image.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.model.cascade_mask_rcnn.cascade import CascadeBoxHeads, select_detections
from pipeline.model.cascade_mask_rcnn.mask_head import CascadeMaskHeads
from pipeline.model.cascade_mask_rcnn.roi import ROI_LEVELS, Slots
from pipeline.model.cascade_mask_rcnn.rpn import RegionProposalNetwork, level_anchors
from pipeline.model.cascade_mask_rcnn.swin import StageWindows, SwinBackbone
from pipeline.model.cascade_mask_rcnn.variants import CascadeVariant
from pipeline.model.detections import BatchDetections
from pipeline.model.detector import Detector, Plan, all_finite
from pipeline.model.settings import TestSettings


@dataclass(frozen=True)
class CascadePlan(Plan):
    """What is the same for all inputs of one padded shape, on the model's device.

    Attributes:
        anchors: of P2..P6, float32 ``(A, 4)`` each, xyxy in input pixels.
        windows: of the backbone's stages.
    """

    anchors: list[Tensor]
    windows: tuple[StageWindows, ...]


class CascadeMaskRCNN(Detector):
    """Backbone, neck, proposals, cascade, masks."""

    def __init__(self, variant: CascadeVariant, drop_path_rate: float = 0.0) -> None:
        super().__init__()
        self.variant = variant
        self.backbone = SwinBackbone(variant, drop_path_rate)
        self.neck = FeaturePyramid([variant.embed_dim * 2**i for i in range(4)], variant.fpn_channels)
        self.rpn = RegionProposalNetwork(variant.fpn_channels)
        self.box_heads = CascadeBoxHeads(variant)
        self.mask_heads = CascadeMaskHeads(variant)

    def plan(self, shape: tuple[int, int]) -> CascadePlan:
        """See `Detector.plan`."""
        return CascadePlan(level_anchors(shape, next(self.parameters()).device), self.backbone.windows(shape))

    def forward(
        self,
        images: Tensor,
        image_sizes: Tensor,
        scale_factors: Tensor,
        plan: Plan,
        settings: TestSettings,
        every_candidate: bool = False,
    ) -> BatchDetections:
        """See `Detector.forward`; masks are ``(B, D, 28, 28)``."""
        assert isinstance(plan, CascadePlan)
        features = self.neck(self.backbone(images, plan.windows))
        proposals = self.rpn(features, plan.anchors, image_sizes, settings)
        slots, pyramid = Slots(proposals.valid, self.compact), features[:ROI_LEVELS]
        rois, deltas, scores = self.box_heads(pyramid, proposals.boxes, slots, image_sizes)
        found = select_detections(rois, deltas, scores, image_sizes, scale_factors, settings, every_candidate)
        boxes_input = found.boxes_image * scale_factors.repeat(1, 2)[:, None]
        masks = self.mask_heads(pyramid, boxes_input, found.labels, Slots(found.valid, self.compact))
        finite = all_finite([*features, proposals.boxes, proposals.scores, rois, deltas, scores, masks])
        return BatchDetections(
            found.boxes_image, found.scores, found.labels, masks, found.valid.sum(dim=1), finite, found.final
        )


class FeaturePyramid(nn.Module):
    """The neck (Lin et al. 2017, arXiv 1612.03144), with mmdet's extra level for the RPN.

    1x1 laterals, nearest top-down sums, 3x3 outputs; no norms and no activations.
    """

    def __init__(self, in_channels: list[int], out_channels: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(c, out_channels, 1) for c in in_channels)
        self.outputs = nn.ModuleList(nn.Conv2d(out_channels, out_channels, 3, padding=1) for _ in in_channels)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Backbone maps at strides 4..32 to P2..P6, all with ``out_channels`` channels.

        A coarse map is brought to the *size* of the finer one, which is not always twice its own. P6 is
        every second pixel of P5; only the RPN uses it.
        """
        levels = [lateral(x) for lateral, x in zip(self.laterals, maps, strict=True)]
        for i in range(len(levels) - 1, 0, -1):
            levels[i - 1] = levels[i - 1] + F.interpolate(levels[i], size=levels[i - 1].shape[-2:], mode="nearest")
        outputs = [conv(x) for conv, x in zip(self.outputs, levels, strict=True)]
        return [*outputs, F.max_pool2d(outputs[-1], kernel_size=1, stride=2)]
