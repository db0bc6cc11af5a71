"""Images of coloured boxes with their targets, as batches."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.model.batch import Batch, Target
from pipeline.model.cascade_mask_rcnn.detector import CascadeMaskRCNN
from pipeline.model.cascade_mask_rcnn.losses.assign import ImageTargets
from pipeline.model.cascade_mask_rcnn.losses.detector import DetectorLoss
from pipeline.model.settings import PUBLISHED_SAMPLING, SamplingConfig
from testing.small_model import SMALL

SIDE = 64
TWO = [(6.0, 8.0, 30.0, 40.0), (34.0, 30.0, 62.0, 60.0)]


def boxes_of(*rows: tuple[float, ...]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)


def masks_of(boxes: Tensor, side: int = SIDE) -> Tensor:
    """Bool (G, side, side): each pixel whose centre lies within the box."""
    centre = torch.arange(side) + 0.5
    inside_x = (centre >= boxes[:, None, 0]) & (centre < boxes[:, None, 2])
    inside_y = (centre >= boxes[:, None, 1]) & (centre < boxes[:, None, 3])
    return inside_y[:, :, None] & inside_x[:, None, :]


def target(*rows: tuple[float, ...], ignored: tuple[int, ...] = (), labels: tuple[int, ...] | None = None) -> Target:
    boxes = boxes_of(*rows)
    names = torch.tensor(labels if labels else [(2 * i + 1) % SMALL.num_classes for i in range(len(rows))])
    flags = torch.tensor([i in ignored for i in range(len(rows))], dtype=torch.bool)
    return Target(boxes, names.long().reshape(-1), masks_of(boxes), flags)


def objects(*rows: tuple[float, ...], ignored: tuple[tuple[float, ...], ...] = ()) -> ImageTargets:
    boxes = boxes_of(*rows)
    return ImageTargets(boxes, torch.arange(len(rows)), masks_of(boxes), boxes_of(*ignored))


def batch(*targets: Target, ids: tuple[int | str, ...] | None = None) -> Batch:
    """Noise, each object brighter in one channel."""
    noise = torch.Generator().manual_seed(5)
    images = []
    for one in targets:
        image = torch.randn(3, SIDE, SIDE, generator=noise) * 0.3
        for label, mask in zip(one.labels, one.masks, strict=True):
            image[label % 3] += 2.0 * mask
        images.append(image)
    sizes = torch.full((len(targets), 2), float(SIDE))
    return Batch(ids or tuple(range(10, 10 + len(targets))), torch.stack(images), sizes, targets)


def small_loss(seed: int = 0, sampling: SamplingConfig = PUBLISHED_SAMPLING) -> DetectorLoss:
    torch.manual_seed(seed)
    return DetectorLoss(CascadeMaskRCNN(SMALL), sampling).train()


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
