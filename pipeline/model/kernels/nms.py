"""Greedy NMS of many groups of boxes at once.

G groups, N boxes in each, the best first.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import nms


@torch.library.custom_op("maskfleet::nms_groups", mutates_args=(), device_types="cpu")
def nms_groups(boxes: Tensor, valid: Tensor, iou_threshold: float) -> Tensor:
    """The boxes of each group whose IoU with every better box kept is at most a threshold.

    Equal to torchvision's ``nms`` on the CPU, to the bit of the IoU. Where the boxes of a group are more than are
    kept in the end, its best so many decide alone: a box depends on better ones only.

    Args:
        boxes: float32 ``(G, N, 4)`` xyxy, best first. A box with a NaN suppresses none and is suppressed by none.
        valid: bool ``(G, N)``; a box that is not is not kept and suppresses none.
        iou_threshold: a box goes when its IoU with a better one is above this.

    Returns:
        bool ``(G, N)``: kept.
    """
    keep = torch.zeros_like(valid)
    for group_boxes, group_valid, group_keep in zip(boxes, valid, keep, strict=True):
        members = group_valid.nonzero()[:, 0]
        order = torch.arange(len(members), 0, -1, dtype=torch.float32)
        group_keep[members[nms(group_boxes[members], order, iou_threshold)]] = True
    return keep


@nms_groups.register_kernel("cuda")
def _(boxes: Tensor, valid: Tensor, iou_threshold: float) -> Tensor:
    from pipeline.model.kernels import cuda

    return cuda.nms_groups(boxes, valid, iou_threshold)


@nms_groups.register_fake
def _(boxes: Tensor, valid: Tensor, iou_threshold: float) -> Tensor:
    return valid.new_empty(valid.shape)
