"""Pictures without content for a model without knowledge: smooth noise at several scales, in sizes as photographs have.

Sizes are (height, width).
"""

from __future__ import annotations

import random
from collections.abc import Iterable

import numpy as np
import torch
from torch.nn import functional as F

_MEAN, _DEVIATION = 115, 45  # of a pixel, about those of photographs


def textured_pictures(sizes: Iterable[tuple[int, int]], seed: int = 0) -> list[np.ndarray]:
    """RGB uint8 ``(H, W, 3)`` of these sizes, each different."""
    rng = np.random.default_rng(seed)
    result = []
    for size in sizes:
        layers = []
        for cells in (4, 16, 64):
            noise = torch.from_numpy(rng.normal(size=(1, 3, cells, cells)).astype(np.float32))
            layers.append(F.interpolate(noise, size=size, mode="bilinear"))
        image = torch.stack(layers).sum(0)[0].permute(1, 2, 0) * _DEVIATION + _MEAN
        result.append(image.clamp(0, 255).to(torch.uint8).numpy())
    return result


def coco_like_sizes(count: int, seed: int = 0) -> list[tuple[int, int]]:
    """A long side of 640, seven in ten landscapes; a third is 4:3, a fifth about 3:2, the rest anything.

    At the published input size that is about forty padded shapes. Made up, not COCO's own list.
    """
    rng = random.Random(seed)
    sizes = []
    for _ in range(count):
        draw = rng.random()
        if draw < 0.34:
            short = 480
        elif draw < 0.52:
            short = rng.choice((424, 425, 426, 427, 428))
        elif draw < 0.60:
            short = 640 if rng.random() < 0.3 else rng.choice((360, 361, 478, 481, 500))
        else:
            short = rng.randint(330, 640)
        sizes.append((short, 640) if rng.random() < 0.7 else (640, short))
    return sizes
