"""Cases that the kernels for CPUs and those for CUDA share, and what torchvision makes of them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import nms, roi_align

from pipeline.model.settings import PIXEL_MEAN, PIXEL_STD

STRIDES = [4, 8, 16, 32]
INPUT = (64, 96)  # H, W
CHANNELS = 3

_NAN, _INF = float("nan"), float("inf")
# Not numbers, too large, without area, inside out.
UNUSABLE_BOXES = [
    *([_NAN if i == k else 40.0 * (1 + i // 2) for i in range(4)] for k in range(4)),
    [0.0, 0.0, _INF, 50.0],
    [-_INF, 0.0, 50.0, 50.0],
    [-_INF, -_INF, _INF, _INF],
    [0.0, 0.0, 3e38, 3e38],
    [-1e9, 0.0, 1e9, 50.0],
    [60.0, 60.0, 50.0, 50.0],
    [10.0, 10.0, 10.0, 50.0],
]


def maps(batch: int = 2, channels: int = CHANNELS, size: tuple[int, int] = INPUT) -> list[Tensor]:
    """P2..P5 of noise, channels last in memory."""
    generator = torch.Generator().manual_seed(0)
    features = [torch.randn(batch, channels, size[0] // s, size[1] // s, generator=generator) for s in STRIDES]
    return [feature.to(memory_format=torch.channels_last) for feature in features]


def boxes_of_all_kinds() -> tuple[Tensor, Tensor, Tensor]:
    """Boxes, levels and images (two) of RoIs: on each level, of no level, and of shapes that are hard to pool."""
    height, width = INPUT
    kinds = [
        [10.3, 11.7, 43.1, 58.2],
        [50.1, 40.2, 50.9, 40.4],  # less than a pixel
        [0, 0, 20, 20],  # at a corner
        [width - 20, height - 20, width, height],  # at the far corner
        [0, 0, width, height],  # whole
        [0, 30, width, 36],  # wide
        [41.5, 0, 44.25, height],  # tall
        [-30, -15, 40, 25],  # partly outside
        [width - 10, height - 9, width + 40, height + 30],
        [-90, -90, -40, -40],  # wholly outside
        [-20, -20, width + 20, height + 20],  # larger than the map
        [28, 28, 56, 56],  # whole bins on the finest level: one sample more or less shows a wrong rounding
        [2, 2, 58, 58],
        [60, 10, 60, 50],  # no width
        [30, 30, 30, 30],  # a point
    ]
    generator = torch.Generator().manual_seed(1)
    corner = torch.rand(12, 2, generator=generator) * torch.tensor([width, height])
    scattered = torch.cat([corner, corner + torch.rand(12, 2, generator=generator) * 50], dim=1)
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
