"""The oracle for mask rasterisation: paste every soft mask into the image with torch, threshold, encode.

Written from the published behaviour of mmdet 2.11: positions of pixel centres normalised to the box, bilinear
``grid_sample`` with ``align_corners=False`` and zeros outside, ``>= 0.5``, and COCO's encoder on the
Fortran-ordered uint8 mask. On a CPU mmdet pastes one instance at a time into the neighbourhood of its box; on a GPU
it samples the full canvas. On boxes of positive size that touch the image both give the same masks.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from pipeline.masks.rle import Rle

THRESHOLD = 0.5


def encode_canvas(mask: NDArray[np.bool_]) -> Rle:
    """COCO RLE of one [H, W] mask, converted the way mmdet does."""
    from pycocotools import mask as coco_mask

    stacked = np.array(mask[:, :, None], order="F", dtype=np.uint8)
    rle: Rle = coco_mask.encode(stacked)[0]
    return rle


def _normalised(first: int, last: int, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """Centres of the pixels first .. last - 1 in each box's -1 .. 1 frame, [N, last - first] float32."""
    centres = torch.arange(first, last).to(torch.float32) + 0.5
    unit = (centres[None] - low[:, None]) / (high - low)[:, None] * 2 - 1
    return torch.where(torch.isinf(unit), torch.zeros_like(unit), unit)


def sample_window(
    masks: torch.Tensor, boxes: torch.Tensor, rows: tuple[int, int], columns: tuple[int, int]
) -> torch.Tensor:
    """Samples of [N, M, M] masks at the pixels of a window of the image, [N, rows, columns] float32."""
    x = _normalised(*columns, boxes[:, 0], boxes[:, 2])
    y = _normalised(*rows, boxes[:, 1], boxes[:, 3])
    shape = (len(masks), y.shape[1], x.shape[1])
    grid = torch.stack([x[:, None, :].expand(shape), y[:, :, None].expand(shape)], dim=3)
    return functional.grid_sample(masks[:, None].to(torch.float32), grid, align_corners=False)[:, 0]


def reference_per_instance(
    masks: NDArray[np.floating], boxes: NDArray[np.floating], image_size: tuple[int, int]
) -> list[Rle]:
    """mmdet's CPU path: each instance sampled from floor(box) - 1 to ceil(box) + 1.

    Raises on boxes outside the image, as the original does.
    """
    height, width = image_size
    soft, frames = torch.from_numpy(masks), torch.from_numpy(boxes).to(torch.float32)
    canvas = torch.zeros((len(masks), height, width), dtype=torch.bool)
    for index, box in enumerate(boxes.tolist()):
        top, bottom = max(math.floor(box[1]) - 1, 0), min(math.ceil(box[3]) + 1, height)
        left, right = max(math.floor(box[0]) - 1, 0), min(math.ceil(box[2]) + 1, width)
        one = slice(index, index + 1)
        samples = sample_window(soft[one], frames[one], (top, bottom), (left, right))
        canvas[index, top:bottom, left:right] = (samples >= THRESHOLD)[0]
    return [encode_canvas(mask) for mask in canvas.numpy()]


def reference_full_canvas(
    masks: NDArray[np.floating], boxes: NDArray[np.floating], image_size: tuple[int, int]
) -> list[Rle]:
    """mmdet's GPU path, on the CPU: all instances sampled at every pixel of the image, as many as fit in 1 GB."""
    height, width = image_size
    soft, frames = torch.from_numpy(masks), torch.from_numpy(boxes).to(torch.float32)
    at_once = max(1, 2**30 // (4 * height * width))
    rles = []
    for start in range(0, len(masks), at_once):
        some = slice(start, start + at_once)
        samples = sample_window(soft[some], frames[some], (0, height), (0, width))
        rles += [encode_canvas(mask) for mask in (samples >= THRESHOLD).numpy()]
    return rles
