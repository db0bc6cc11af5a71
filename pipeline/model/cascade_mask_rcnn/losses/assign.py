"""Which object a box is to find, as mmdet's `MaxIoUAssigner` decides it, with objects that are ignored.

N boxes, G objects that count, I ignored ones; boxes xyxy in pixels of the input.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.model.batch import Target

NEGATIVE = -1
UNUSED = -2

# A box that lies to this part or more within an ignored object says nothing about the background.
_MOSTLY_INSIDE = 0.5
_SMALLEST_AREA = 1e-6


@dataclass(frozen=True)
class ImageTargets:
    """The objects of one image, those that count apart from those that are ignored.

    Attributes:
        boxes: ``(G, 4)`` xyxy.
        labels: int64 ``(G,)``, index into the model's categories.
        masks: bool ``(G, H, W)``.
        ignored_boxes: ``(I, 4)`` xyxy, of those that are ignored.
    """

    boxes: Tensor
    labels: Tensor
    masks: Tensor
    ignored_boxes: Tensor

    @staticmethod
    def of(target: Target) -> ImageTargets:
        """The objects of a target."""
        if not target.ignored.any():
            return ImageTargets(target.boxes, target.labels, target.masks, target.boxes[:0])
        count = ~target.ignored
        return ImageTargets(
            target.boxes[count], target.labels[count], target.masks[count], target.boxes[target.ignored]
        )


@dataclass(frozen=True)
class Rule:
    """The IoUs that decide.

    Attributes:
        positive: at this IoU with an object or above, a box belongs to it.
        negative: below this IoU with every object, a box is background. Between the two it is not used.
        best_match: an object whose best box has at least this IoU gets that box, and every other that is as
            good, whatever `positive` says (Ren et al. 2015, 3.1.2); None: it does not.
    """

    positive: float
    negative: float
    best_match: float | None = None


def assign(boxes: Tensor, objects: ImageTargets, rule: Rule) -> Tensor:
    """The object of each box.

    Ignored objects take part as follows. A box that would be background is not used where it lies half or
    more within an ignored object, or where it overlaps one too well to be background (`Rule.negative`). A
    box that belongs to an object stays with it, unless an ignored one fits strictly better; a crowd region
    thus does not hide the objects annotated in it, as in COCO's evaluation.

    Args:
        boxes: ``(N, 4)``; those without area, which show nothing of the image, and those with NaN
            coordinates come out `UNUSED`.
        objects: what there is to find on the image.
        rule: which IoU decides what.

    Returns:
        int64 ``(N,)``: index of an object that counts, or `NEGATIVE`, or `UNUSED`.
    """
    iou = box_ious(boxes, objects.boxes)
    best, owner = _best(iou)
    best_ignored, _ = _best(box_ious(boxes, objects.ignored_boxes))
    inside_ignored, _ = _best(parts_inside(boxes, objects.ignored_boxes))
    background = (best < rule.negative) & (best_ignored < rule.negative) & (inside_ignored < _MOSTLY_INSIDE)
    assigned = torch.where(background & (_area(boxes) > 0), NEGATIVE, UNUSED)
    assigned = torch.where((best >= rule.positive) & (best >= best_ignored), owner, assigned)
    if rule.best_match is None or 0 in iou.shape:
        return assigned
    best_of_object = iou.amax(dim=0)
    matched = (iou == best_of_object) & (best_of_object >= rule.best_match)
    # Of several objects whose best box this is, the last one gets it, as in the reference.
    last = torch.where(matched, torch.arange(iou.shape[1], device=iou.device), -1).amax(dim=1)
    return torch.where(last >= 0, last, assigned)


def box_ious(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersection over union: ``(N, 4)``, ``(M, 4)`` -> ``(N, M)``.

    Boxes without area overlap nothing; torchvision's ``box_iou`` gives NaN for two of them.
    """
    shared = _shared_area(boxes, others)
    return shared / (_area(boxes)[:, None] + _area(others) - shared).clamp(min=_SMALLEST_AREA)


def parts_inside(boxes: Tensor, others: Tensor) -> Tensor:
    """The part of each box's area that lies within each other one: ``(N, 4)``, ``(M, 4)`` -> ``(N, M)``."""
    return _shared_area(boxes, others) / _area(boxes)[:, None].clamp(min=_SMALLEST_AREA)


def _shared_area(boxes: Tensor, others: Tensor) -> Tensor:
    width = torch.minimum(boxes[:, None, 2], others[:, 2]) - torch.maximum(boxes[:, None, 0], others[:, 0])
    height = torch.minimum(boxes[:, None, 3], others[:, 3]) - torch.maximum(boxes[:, None, 1], others[:, 1])
    return width.clamp_(min=0) * height.clamp_(min=0)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _best(values: Tensor) -> tuple[Tensor, Tensor]:
    """Maximum of each row and where it is; 0 and 0 for rows without a value."""
    if values.shape[1] == 0:
        return values.new_zeros(len(values)), torch.zeros(len(values), dtype=torch.int64, device=values.device)
    best = values.max(dim=1)
    return best.values, best.indices
