"""Losses of boxes: smooth L1 on deltas for the RPN, GIoU on decoded boxes for the cascade. P pairs."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import generalized_box_iou_loss

SMOOTH_L1_BETA = 1 / 9
_SMALLEST_SIDE = 1e-3  # pixels; the logarithm of a side must exist


def encode_deltas(boxes: Tensor, targets: Tensor) -> Tensor:
    """The deltas that turn boxes into targets, the inverse of `apply_deltas` with stds of 1: ``(P, 4)``."""
    side = (boxes[:, 2:] - boxes[:, :2]).clamp(min=_SMALLEST_SIDE)
    target_side = (targets[:, 2:] - targets[:, :2]).clamp(min=_SMALLEST_SIDE)
    shift = ((targets[:, :2] + targets[:, 2:]) - (boxes[:, :2] + boxes[:, 2:])) * 0.5 / side
    return torch.cat([shift, (target_side / side).log()], dim=1)


def smooth_l1(deltas: Tensor, targets: Tensor) -> Tensor:
    """Sum over all coordinates of ``(P, 4)``: quadratic below `SMOOTH_L1_BETA`, linear above (arXiv 1504.08083)."""
    return F.smooth_l1_loss(deltas, targets, beta=SMOOTH_L1_BETA, reduction="sum")


def giou(boxes: Tensor, targets: Tensor) -> Tensor:
    """Sum over pairs of boxes ``(P, 4)`` of 1 - GIoU, each in [0, 2] (Rezatofighi et al. 2019, arXiv 1902.09630)."""
    return generalized_box_iou_loss(boxes, targets, reduction="sum")
