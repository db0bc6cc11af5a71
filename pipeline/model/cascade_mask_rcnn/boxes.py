"""Box arithmetic: deltas to boxes and back, NMS by group, the pyramid level of a RoI.

Boxes are float32 xyxy in pixels of the frame the caller works in; a box's width is ``x2 - x1`` (no +1).
R boxes, P pairs of boxes, K classes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchvision.ops import nms

# |log(16 / 1000)|: the largest change of log width or height that a head may ask for, either way.
MAX_LOG_RATIO = abs(math.log(16 / 1000))
_SMALLEST_SIDE = 1e-3  # pixels; the logarithm of a side must exist

# Above this many boxes NMS runs group by group: its work grows with the square of what it gets at once.
_NMS_SPLIT = 10_000


def apply_deltas(boxes: Tensor, deltas: Tensor, stds: tuple[float, float, float, float]) -> Tensor:
    """Apply regression deltas to boxes (R-CNN parametrisation, arXiv 1311.2524), wherever that takes them.

    Args:
        boxes: ``(..., 4)`` xyxy.
        deltas: ``(..., 4)`` as ``(dx, dy, dw, dh)``, centre shifts in box sides and log scale factors.
        stds: what the deltas were divided by in training.

    Returns:
        ``(..., 4)`` xyxy.
    """
    deltas = deltas * deltas.new_tensor(stds)
    shift, log_scale = deltas[..., :2], deltas[..., 2:].clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    centre = (boxes[..., :2] + boxes[..., 2:]) * 0.5
    side = boxes[..., 2:] - boxes[..., :2]
    centre = centre + side * shift
    half = side * log_scale.exp() * 0.5
    return torch.cat([centre - half, centre + half], dim=-1)


def encode_deltas(boxes: Tensor, targets: Tensor) -> Tensor:
    """The deltas that turn boxes into targets, the inverse of `apply_deltas` with stds of 1: ``(P, 4)``."""
    side = (boxes[:, 2:] - boxes[:, :2]).clamp(min=_SMALLEST_SIDE)
    target_side = (targets[:, 2:] - targets[:, :2]).clamp(min=_SMALLEST_SIDE)
    shift = ((targets[:, :2] + targets[:, 2:]) - (boxes[:, :2] + boxes[:, 2:])) * 0.5 / side
    return torch.cat([shift, (target_side / side).log()], dim=1)


def decode_deltas(boxes: Tensor, deltas: Tensor, stds: tuple[float, float, float, float], sizes: Tensor) -> Tensor:
    """`apply_deltas`, then clip to the image.

    Args:
        boxes: ``(..., 4)`` xyxy.
        deltas: ``(..., 4)`` as `apply_deltas` takes them.
        stds: what the deltas were divided by in training.
        sizes: ``(..., 2)`` the ``(H, W)`` to clip to, broadcastable over the boxes.

    Returns:
        ``(..., 4)`` xyxy within ``[0, W] x [0, H]``.
    """
    moved = apply_deltas(boxes, deltas, stds).clamp(min=0)
    limit = sizes.flip(-1)
    return torch.minimum(moved, torch.cat([limit, limit], dim=-1))


def nms_by_group(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
    """NMS in which only boxes of one group (a class, a pyramid level) suppress each other.

    Groups are kept apart by moving each to a place of its own, as mmcv's ``batched_nms`` does.

    Args:
        boxes: ``(R, 4)`` xyxy, all coordinates >= 0.
        scores: ``(R,)``, the higher, the better.
        groups: ``(R,)`` integers, the group of each box.
        iou_threshold: a box goes when its IoU with a better one is above this.

    Returns:
        Indices of the boxes kept, best score first.
    """
    if boxes.numel() == 0:
        return torch.zeros(0, dtype=torch.int64, device=boxes.device)
    moved = boxes + (groups.to(boxes) * (boxes.max() + 1))[:, None]
    if len(boxes) < _NMS_SPLIT:
        return nms(moved, scores, iou_threshold)
    kept = torch.cat(
        [
            members[nms(moved[members], scores[members], iou_threshold)]
            for members in ((groups == g).nonzero()[:, 0] for g in groups.unique())
        ]
    )
    return kept[scores[kept].argsort(descending=True, stable=True)]


def pyramid_level(boxes: Tensor, num_levels: int, finest_side: float = 56.0) -> Tensor:
    """The pyramid level (0 = finest) a RoI is pooled from (Lin et al. 2017, eq. 1, mmdet's constants).

    Args:
        boxes: ``(R, 4)`` xyxy in input pixels.
        num_levels: how many levels there are.
        finest_side: a square RoI of twice this side or more leaves the finest level.

    Returns:
        int64 ``(R,)``.
    """
    side = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
    return torch.floor(torch.log2(side / finest_side + 1e-6)).clamp(0, num_levels - 1).long()
