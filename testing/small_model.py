"""A detector small enough to run in milliseconds, with every kind of layer."""

from __future__ import annotations

import numpy as np

from pipeline.model.cascade_mask_rcnn.variants import CascadeVariant
from pipeline.model.categories import Category
from pipeline.model.settings import TestSettings

SMALL = CascadeVariant(
    "custom",
    embed_dim=16,
    depths=(2, 1, 2, 1),
    num_heads=(1, 2, 4, 8),
    num_classes=5,
    fpn_channels=16,
    box_convs=2,
    box_channels=24,
    box_fc=32,
    mask_convs=2,
    mask_channels=12,
)
SMALL_CATEGORIES = tuple(Category(10 * i + 3, f"thing {i}") for i in range(SMALL.num_classes))
SMALL_SETTINGS = TestSettings(short_side=96, long_side=160, proposals_per_level=100, proposals=60, max_detections=30)


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """RGB uint8 ``(H, W, 3)``: patches and noise, so that detections differ from place to place."""
    random = np.random.default_rng(seed)
    patches = random.integers(0, 256, (height // 12 + 1, width // 12 + 1, 3)).repeat(12, 0).repeat(12, 1)
    return (patches[:height, :width] * 0.8 + random.integers(0, 50, (height, width, 3))).astype(np.uint8)
