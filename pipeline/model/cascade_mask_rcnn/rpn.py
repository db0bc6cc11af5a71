"""Region proposal network (Ren et al. 2015, arXiv 1506.01497) over pyramid levels P2..P6.

B images, L levels, A anchors of one level (row, column, ratio order), N candidates of a level, P proposals of an image,
H W size of a level's map.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.model.cascade_mask_rcnn.boxes import decode_deltas, moved_apart, take_boxes
from pipeline.model.kernels.nms import nms_groups
from pipeline.model.settings import TestSettings

STRIDES = (4, 8, 16, 32, 64)
ANCHOR_SCALE = 8.0
ANCHOR_RATIOS = (0.5, 1.0, 2.0)  # height / width
_UNIT_STDS = (1.0, 1.0)


class Proposals(NamedTuple):
    """Of a batch, each image's best first and what it has not in the slots behind.

    Attributes:
        boxes: float32 ``(B, P, 4)`` xyxy in input pixels, clipped to the unpadded image. Boxes of no size are kept:
            they take their places as in the reference. Empty slots are zero.
        scores: float32 ``(B, P)``, alike.
        valid: bool ``(B, P)``: the slot holds a proposal.
    """

    boxes: Tensor
    scores: Tensor
    valid: Tensor


def level_anchors(shape: tuple[int, int], device: torch.device) -> list[Tensor]:
    """The anchors of P2..P6 for an input of this padded ``(H, W)``: per level ``(A, 4)``, in the order of the head."""
    return [anchors(-(-shape[0] // stride), -(-shape[1] // stride), stride, device) for stride in STRIDES]


def anchors(height: int, width: int, stride: int, device: torch.device) -> Tensor:
    """The anchors of one level: float32 ``(H * W * 3, 4)`` xyxy in input pixels.

    Centred on the pixel's corner (mmdet's ``center_offset=0``) and not rounded, unlike torchvision's.
    """
    root = torch.tensor(ANCHOR_RATIOS).sqrt()
    half = 0.5 * torch.stack([stride * (1 / root) * ANCHOR_SCALE, stride * root * ANCHOR_SCALE], dim=1)
    base = torch.cat([-half, half], dim=1).to(device)
    rows, columns = torch.arange(height, device=device) * stride, torch.arange(width, device=device) * stride
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    shift = torch.stack([x, y, x, y], dim=-1).reshape(-1, 1, 4)
    # A tensor of its own: of a view a compiled graph would watch the shape of what it views, too.
    return (shift + base).reshape(-1, 4).clone()


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
            deltas = self.deltas(x).permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, 4))
            outputs.append((logits.float(), deltas.float()))
        return outputs

    def forward(
        self, features: list[Tensor], grids: Sequence[Tensor], image_sizes: Tensor, settings: TestSettings
    ) -> Proposals:
        """Proposals of each image from P2..P6, each ``(B, C, H, W)``; the rest as for `propose`."""
        return propose(self.head(features), grids, image_sizes, settings)


def propose(
    outputs: Sequence[tuple[Tensor, Tensor]], grids: Sequence[Tensor], image_sizes: Tensor, settings: TestSettings
) -> Proposals:
    """The best of what the head found in each image.

    Args:
        outputs: per level, logits ``(B, A)`` and deltas ``(B, A, 4)``, from `RegionProposalNetwork.head`.
        grids: per level, anchors ``(A, 4)`` xyxy in input pixels, from `level_anchors`.
        image_sizes: float32 ``(B, 2)``, ``(H, W)`` of each image in the input before padding.
        settings: how many proposals to keep.
    """
    # As many slots for each level as the finest can fill.
    slots = min(settings.proposals_per_level, grids[0].shape[0])
    scores, chosen, deltas = [], [], []
    for (logits, level_deltas), grid in zip(outputs, grids, strict=True):
        top, index = logits.sigmoid().topk(min(settings.proposals_per_level, logits.shape[1]))
        scores.append(top)
        chosen.append(grid[index])
        deltas.append(take_boxes(level_deltas, index))
    decoded = decode_deltas(torch.cat(chosen, dim=1), torch.cat(deltas, dim=1), _UNIT_STDS, image_sizes[:, None])
    # A level of fewer anchors leaves slots empty. No score is below zero.
    parts = decoded.split([top.shape[1] for top in scores], dim=1)
    boxes = torch.stack([F.pad(part, (0, 0, 0, slots - part.shape[1])) for part in parts], dim=1)  # (B, L, N, 4)
    padded = torch.stack([F.pad(top, (0, slots - top.shape[1]), value=-1.0) for top in scores], dim=1)
    valid = ~(padded < 0)
    number = torch.arange(len(grids), device=boxes.device)[:, None]
    moved = moved_apart(boxes, number, boxes.amax(dim=(1, 2, 3)))
    keep = nms_groups(moved.flatten(0, 1), valid.flatten(0, 1), settings.rpn_nms_iou)
    keep = keep.view(valid.shape).flatten(1)
    # Stable, so that of equal scores the finer level's comes first.
    ranked, order = padded.flatten(1).masked_fill(~keep, -1.0).sort(dim=1, descending=True, stable=True)
    ranked, order = ranked[:, : settings.proposals], order[:, : settings.proposals]
    valid = ~(ranked < 0)
    best = take_boxes(boxes.flatten(1, 2), order)
    return Proposals(best.masked_fill(~valid[..., None], 0.0), ranked.masked_fill(~valid, 0.0), valid)
