"""Cases that the kernels for CPUs and those for CUDA share, and what torchvision makes of them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import nms, roi_align

from pipeline.model.settings import PIXEL_MEAN, PIXEL_STD

STRIDES = [4, 8, 16, 32]
INPUT = (192, 256)  # H, W
CHANNELS = 3


def maps(batch: int = 2, channels: int = CHANNELS, size: tuple[int, int] = INPUT) -> list[Tensor]:
    """P2..P5 of noise, channels last in memory."""
    generator = torch.Generator().manual_seed(0)
    features = [torch.randn(batch, channels, size[0] // s, size[1] // s, generator=generator) for s in STRIDES]
    return [feature.to(memory_format=torch.channels_last) for feature in features]


def boxes_of_all_kinds() -> tuple[Tensor, Tensor, Tensor]:
    """Boxes, levels and images (two) of RoIs: on each level, of no level, and of shapes that are hard to pool."""
    height, width = INPUT
    kinds = [
        [30.3, 41.7, 63.1, 98.2],
        [50.1, 60.2, 50.9, 60.4],  # less than a pixel
        [0, 0, 40, 40],  # at a corner
        [width - 40, height - 40, width, height],  # at the far corner
        [0, 0, width, height],  # whole
        [0, 80, width, 96],  # wide
        [101.5, 0, 107.25, height],  # tall
        [-60, -30, 90, 50],  # partly outside
        [width - 20, height - 9, width + 200, height + 90],
        [-500, -500, -400, -400],  # wholly outside
        [-60, -60, width + 60, height + 60],  # larger than the map
        [28, 28, 56, 56],  # whole bins on the finest level: one sample more or less shows a wrong rounding
        [2, 2, 58, 114],
        [100, 100, 100, 180],  # no width
        [90, 90, 90, 90],  # a point
    ]
    generator = torch.Generator().manual_seed(1)
    corner = torch.rand(12, 2, generator=generator) * torch.tensor([width, height])
    scattered = torch.cat([corner, corner + torch.rand(12, 2, generator=generator) * 120], dim=1)
    boxes = torch.cat([torch.tensor(kinds).float(), scattered])
    levels = torch.arange(-1, len(STRIDES)).repeat_interleave(len(boxes))
    boxes = boxes.repeat(len(STRIDES) + 1, 1)
    return boxes, levels, torch.arange(len(boxes)) % 2


def torchvision_levels(features: list[Tensor], boxes: Tensor, levels: Tensor, images: Tensor, side: int) -> Tensor:
    """What `roi_align_levels` gives, from torchvision, one RoI at a time."""
    pooled = torch.zeros(len(boxes), features[0].shape[1], side, side)
    rois = torch.cat([images[:, None].to(boxes), boxes], dim=1)
    for i, level in enumerate(levels.tolist()):
        if level >= 0:
            scale = 1 / STRIDES[level]
            pooled[i : i + 1] = roi_align(features[level].float(), rois[i : i + 1], side, scale, 0, aligned=True)
    return pooled


def crowd(groups: int, number: int, seed: int) -> tuple[Tensor, Tensor]:
    """``(groups, number, 4)`` boxes of which many overlap, some are equal and some empty, and which are valid."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(groups, number, 2, generator=generator) * 80
    boxes = torch.cat([corner, corner + torch.rand(groups, number, 2, generator=generator) * 50], dim=2)
    boxes[:, ::7] = boxes[:, ::7].round()
    boxes[:, 3::11] = boxes[:, ::11][:, : len(boxes[0, 3::11])]
    boxes[:, 5::13, 2] = boxes[:, 5::13, 0]
    return boxes, torch.rand(groups, number, generator=generator) > 0.1


def torchvision_nms(boxes: Tensor, valid: Tensor, iou_threshold: float) -> Tensor:
    """What `nms_groups` keeps, from torchvision, group by group."""
    keep = torch.zeros_like(valid)
    for group in range(len(boxes)):
        members = [i for i in range(boxes.shape[1]) if valid[group, i]]
        scores = torch.linspace(1, 0, len(members))
        for place in nms(boxes[group, members], scores, iou_threshold).tolist():
            keep[group, members[place]] = True
    return keep


def pictures_of(sizes: list[tuple[int, int]]) -> list[np.ndarray]:
    """Noise with saturated pixels, RGB uint8: the hardest for rounding."""
    random = np.random.default_rng(0)
    pictures = [random.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    return [np.where(random.random((*p.shape[:2], 1)) < 0.1, np.uint8(255), p) for p in pictures]


def packed(images: list[np.ndarray], targets: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """The bytes and the table that `resize_normalise` takes."""
    starts = np.cumsum([0] + [image.size for image in images])
    rows = [
        [start, *image.shape[:2], *target] for start, image, target in zip(starts[:-1], images, targets, strict=True)
    ]
    return torch.from_numpy(np.concatenate([image.ravel() for image in images])), torch.tensor(rows)


def opencv_inputs(images: list[np.ndarray], targets: list[tuple[int, int]], height: int, width: int) -> Tensor:
    """What `resize_normalise` gives, from OpenCV and numpy's float32."""
    import cv2

    mean, std = np.array(PIXEL_MEAN, np.float32), np.array(PIXEL_STD, np.float32)
    inputs = np.zeros((len(images), height, width, 3), np.float32)
    for row, image, (target_h, target_w) in zip(inputs, images, targets, strict=True):
        resized = cv2.resize(image, (target_w, target_h), interpolation=cv2.INTER_LINEAR)
        row[:target_h, :target_w] = (resized.astype(np.float32) - mean) / std
    return torch.from_numpy(inputs).permute(0, 3, 1, 2)
