"""Box arithmetic: deltas to boxes and back, groups that NMS keeps apart, the pyramid level of a RoI.

Boxes are float32 xyxy in pixels of the frame the caller works in; a box's width is ``x2 - x1`` (no +1).
B images, G groups of an image, N boxes of a group, R boxes, P pairs of boxes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# |log(16 / 1000)|: the largest change of log width or height that a head may ask for, either way.
MAX_LOG_RATIO = abs(math.log(16 / 1000))
_SMALLEST_SIDE = 1e-3  # pixels; the logarithm of a side must exist

# What deltas were divided by in training: shifts by the first, log scale factors by the second. Numbers of Python, not
# a tensor: that would be a copy to the device in each call.
Stds = tuple[float, float]


def apply_deltas(boxes: Tensor, deltas: Tensor, stds: Stds) -> Tensor:
    """Apply regression deltas to boxes (R-CNN parametrisation, arXiv 1311.2524), wherever that takes them.

    Args:
        boxes: ``(..., 4)`` xyxy.
        deltas: ``(..., 4)`` as ``(dx, dy, dw, dh)``, centre shifts in box sides and log scale factors.
        stds: what the deltas were divided by in training.

    Returns:
        ``(..., 4)`` xyxy.
    """
    shift = deltas[..., :2] * stds[0]
    log_scale = (deltas[..., 2:] * stds[1]).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
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


def decode_deltas(boxes: Tensor, deltas: Tensor, stds: Stds, sizes: Tensor) -> Tensor:
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


def take_boxes(boxes: Tensor, index: Tensor) -> Tensor:
    """Boxes ``(B, N, 4)``, or deltas, at int64 ``(B, n)``: ``(B, n, 4)``."""
    # As torch.take_along_dim, which fixes B in what is compiled: each number of images would be compiled by itself.
    return boxes.gather(1, index[..., None].expand(-1, -1, 4))


def moved_apart(boxes: Tensor, groups: Tensor, largest: Tensor) -> Tensor:
    """Each group at a place of its own, where boxes of two groups never overlap, as mmcv's ``batched_nms`` does.

    It is done where groups reach NMS one by one, too: an IoU next to the threshold rounds as in the reference.

    Args:
        boxes: ``(B, G, N, 4)`` xyxy, all coordinates >= 0.
        groups: integers, broadcastable to ``(B, G, N)``: the group (a class, a pyramid level) of each box.
        largest: ``(B,)``, no coordinate of an image is above this.
    """
    offsets = groups.to(boxes) * (largest[:, None, None] + 1)
    return boxes + offsets[..., None]


def pyramid_level(boxes: Tensor, num_levels: int, finest_side: float = 56.0) -> Tensor:
    """The pyramid level (0 = finest) a RoI is pooled from (Lin et al. 2017, eq. 1, mmdet's constants).

    Args:
        boxes: ``(R, 4)`` xyxy in input pixels.
        num_levels: how many levels there are.
        finest_side: a square RoI of twice this side or more leaves the finest level.

    Returns:
        int64 ``(R,)``; 0 for boxes that are NaN, of which no integer can be made.
    """
    side = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
    level = torch.floor(torch.log2(side / finest_side + 1e-6)).clamp(0, num_levels - 1)
    return level.nan_to_num(0.0).long()
