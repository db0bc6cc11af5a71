"""Detectors small enough to run in milliseconds: `SMALL` with every kind of layer, `TINY` for runs of whole jobs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch

from pipeline.model.cascade_mask_rcnn.detector import CascadeMaskRCNN
from pipeline.model.cascade_mask_rcnn.variants import CascadeVariant
from pipeline.model.categories import Category
from pipeline.model.files.checkpoints import Checkpoint, save_checkpoint
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

TINY = CascadeVariant(
    "tiny",
    embed_dim=8,
    depths=(1, 1, 1, 1),
    num_heads=(1, 1, 2, 2),
    num_classes=3,
    fpn_channels=8,
    box_convs=1,
    box_channels=8,
    box_fc=16,
    mask_convs=1,
    mask_channels=8,
)
# A threshold of 0: random weights are sure of nothing, and the tests want detections.
TINY_SETTINGS = TestSettings(short_side=64, long_side=96, proposals=40, score_threshold=0.0, max_detections=5)


def random_checkpoint(variant: CascadeVariant, categories: Sequence[Category], settings: TestSettings) -> Checkpoint:
    """Weights that are always the same, and mean nothing."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        weights = CascadeMaskRCNN(variant).state_dict()
    return Checkpoint(weights, variant, tuple(categories), settings, {"file": "made up"})


def save_tiny(path: Path, categories: Iterable[tuple[int, str]]) -> Path:
    """A checkpoint file of `TINY` with these ids and names of categories; its path."""
    save_checkpoint(random_checkpoint(TINY, [Category(*pair) for pair in categories], TINY_SETTINGS), path)
    return path


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """RGB uint8 ``(H, W, 3)``: patches and noise, so that detections differ from place to place."""
    random = np.random.default_rng(seed)
    patches = random.integers(0, 256, (height // 12 + 1, width // 12 + 1, 3)).repeat(12, 0).repeat(12, 1)
    return (patches[:height, :width] * 0.8 + random.integers(0, 50, (height, width, 3))).astype(np.uint8)
