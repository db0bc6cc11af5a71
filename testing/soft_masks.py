"""Soft masks and boxes like a trained head's, at random."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float32Array = NDArray[np.float32]

MASK_SIDE = 28


def soft_masks(rng: np.random.Generator, num_masks: int) -> Float32Array:
    """[N, 28, 28] probabilities like a trained head's: one wobbly blob that fills its box, edges 1-2 cells wide."""
    axis = (np.arange(MASK_SIDE) + 0.5) / MASK_SIDE * 2 - 1
    y, x = np.meshgrid(axis, axis, indexing="ij")
    radius, angle = np.hypot(y, x), np.arctan2(y, x)
    outline = np.full((num_masks, MASK_SIDE, MASK_SIDE), 0.85)
    for waves in (2, 3, 5, 8):
        height, phase = rng.uniform(0, 0.3 / waves, num_masks), rng.uniform(0, 2 * np.pi, num_masks)
        outline += height[:, None, None] * np.cos(waves * angle + phase[:, None, None])
    logits = (outline - radius) * rng.uniform(15, 40, (num_masks, 1, 1))
    logits += rng.normal(0, 0.3, logits.shape)
    return (1 / (1 + np.exp(-logits))).astype(np.float32)


def random_boxes(rng: np.random.Generator, num_boxes: int, image_size: tuple[int, int], share: float) -> Float32Array:
    """[N, 4] xyxy inside the image, of many sizes and shapes, ``share`` of the image on average."""
    height, width = image_size
    area = rng.lognormal(0, 0.8, num_boxes)
    area *= share * height * width / area.mean()
    aspect = np.exp(rng.normal(0, 0.35, num_boxes))
    box_w, box_h = np.minimum(np.sqrt(area * aspect), width), np.minimum(np.sqrt(area / aspect), height)
    x0, y0 = rng.uniform(0, width - box_w), rng.uniform(0, height - box_h)
    return np.stack([x0, y0, x0 + box_w, y0 + box_h], axis=1).astype(np.float32)
