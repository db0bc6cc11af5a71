"""What a mask head shall answer for a RoI: its object's mask, cut out and brought to the head's grid.

P RoIs, G objects, H W size of the input before padding, S side of the head's output.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import roi_align

_MASKS_AT_ONCE = 32  # objects whose masks are held as float32 at a time


def mask_targets(masks: Tensor, boxes: Tensor, owners: Tensor, side: int) -> Tensor:
    """RoIAlign of bitmaps, then half or more counts as inside, as mmdet and detectron2 do.

    Args:
        masks: bool ``(G, H, W)``.
        boxes: ``(P, 4)`` xyxy in pixels of the masks.
        owners: int64 ``(P,)``, the object of each RoI.
        side: S.

    Returns:
        float32 ``(P, S, S)`` of 0 and 1.
    """
    targets = boxes.new_zeros((len(boxes), side, side))
    for start in range(0, len(masks), _MASKS_AT_ONCE):
        members = ((owners >= start) & (owners < start + _MASKS_AT_ONCE)).nonzero()[:, 0]
        if len(members) == 0:
            continue
        bitmaps = masks[start : start + _MASKS_AT_ONCE, None].float()
        rois = torch.cat([(owners[members] - start)[:, None].to(boxes), boxes[members]], dim=1)
        targets[members] = roi_align(bitmaps, rois, side, sampling_ratio=0, aligned=True)[:, 0]
    return (targets >= 0.5).float()
