"""Region proposal network (Ren et al. 2015, arXiv 1506.01497) over pyramid levels P2..P6.

B images, A anchors of one level (row, column, ratio order), H W size of a level's map.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.model.cascade_mask_rcnn.boxes import decode_deltas, nms_by_group
from pipeline.model.settings import TestSettings

STRIDES = (4, 8, 16, 32, 64)
ANCHOR_SCALE = 8.0
ANCHOR_RATIOS = (0.5, 1.0, 2.0)  # height / width
_UNIT_STDS = (1.0, 1.0, 1.0, 1.0)


@lru_cache(maxsize=512)
def anchors(height: int, width: int, stride: int, device: torch.device) -> Tensor:
    """The anchors of one level: float32 ``(H * W * 3, 4)`` xyxy in input pixels.

    Centred on the pixel's corner (mmdet's ``center_offset=0``) and not rounded, unlike torchvision's.
    """
    root = torch.tensor(ANCHOR_RATIOS).sqrt()
    half = 0.5 * torch.stack([stride * (1 / root) * ANCHOR_SCALE, stride * root * ANCHOR_SCALE], dim=1)
    base = torch.cat([-half, half], dim=1)
    y, x = torch.meshgrid(torch.arange(height) * stride, torch.arange(width) * stride, indexing="ij")
    shift = torch.stack([x, y, x, y], dim=-1).reshape(-1, 1, 4)
    return (shift + base).reshape(-1, 4).to(device)


class RegionProposalNetwork(nn.Module):
    """One 3x3 convolution shared by all levels, then objectness and deltas per anchor."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        num_anchors = len(ANCHOR_RATIOS)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.objectness = nn.Conv2d(channels, num_anchors, 1)
        self.deltas = nn.Conv2d(channels, 4 * num_anchors, 1)

    def head(self, features: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Per level: objectness logits ``(B, A)`` and deltas ``(B, A, 4)``, float32."""
        outputs = []
        for feature in features:
            x = F.relu(self.conv(feature)).float()
            logits = self.objectness(x).permute(0, 2, 3, 1).flatten(1)
            deltas = self.deltas(x).permute(0, 2, 3, 1).reshape(len(x), -1, 4)
            outputs.append((logits.float(), deltas.float()))
        return outputs

    def forward(
        self, features: list[Tensor], image_sizes: Tensor, settings: TestSettings
    ) -> list[tuple[Tensor, Tensor]]:
        """Proposals of each image from P2..P6, each ``(B, C, H, W)``; the rest as for `propose`."""
        return propose(self.head(features), level_anchors(features), image_sizes, settings)


def level_anchors(features: list[Tensor]) -> list[Tensor]:
    """The anchors of P2..P6: per level ``(A, 4)`` xyxy in input pixels, in the order of the head's outputs."""
    return [anchors(*f.shape[-2:], stride, f.device) for f, stride in zip(features, STRIDES, strict=True)]


def propose(
    outputs: list[tuple[Tensor, Tensor]], grids: list[Tensor], image_sizes: Tensor, settings: TestSettings
) -> list[tuple[Tensor, Tensor]]:
    """The best of what the head found in each image.

    Args:
        outputs: per level, logits ``(B, A)`` and deltas ``(B, A, 4)``, from `RegionProposalNetwork.head`.
        grids: per level, anchors ``(A, 4)`` xyxy in input pixels, from `level_anchors`.
        image_sizes: float32 ``(B, 2)``, ``(H, W)`` of each image in the input before padding.
        settings: how many proposals to keep.

    Returns:
        Per image ``(n, 4)`` xyxy in input pixels, clipped to the unpadded image, and their scores
        ``(n,)``, best first. Boxes of no size are kept: they take their places as in the reference.
    """
    boxes, scores, levels = [], [], []
    for level, ((logits, deltas), grid) in enumerate(zip(outputs, grids, strict=True)):
        top, index = logits.sigmoid().topk(min(settings.proposals_per_level, logits.shape[1]))
        deltas = deltas.gather(1, index[..., None].expand(-1, -1, 4))
        boxes.append(decode_deltas(grid[index], deltas, _UNIT_STDS, image_sizes[:, None]))
        scores.append(top)
        levels.append(torch.full_like(index[0], level))
    all_boxes, all_scores, all_levels = torch.cat(boxes, 1), torch.cat(scores, 1), torch.cat(levels)
    proposals = []
    for image_boxes, image_scores in zip(all_boxes, all_scores, strict=True):
        keep = nms_by_group(image_boxes, image_scores, all_levels, settings.rpn_nms_iou)
        keep = keep[: settings.proposals]
        proposals.append((image_boxes[keep], image_scores[keep]))
    return proposals
