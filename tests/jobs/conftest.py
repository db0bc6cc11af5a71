from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.model.cascade_mask_rcnn.detector import CascadeMaskRCNN
from pipeline.model.cascade_mask_rcnn.variants import CascadeVariant
from pipeline.model.categories import Category
from pipeline.model.files.checkpoints import Checkpoint, save_checkpoint
from pipeline.model.settings import TestSettings

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
CATEGORIES = (Category(7, "Äpfel"), Category(3, "cat"), Category(12, "traffic light"))
# A threshold of 0: random weights are sure of nothing, and the tests want detections.
SETTINGS = TestSettings(short_side=64, long_side=96, proposals=40, score_threshold=0.0, max_detections=5)


@pytest.fixture(scope="session")
def tiny_checkpoint() -> Checkpoint:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        detector = CascadeMaskRCNN(TINY)
    return Checkpoint(detector.state_dict(), TINY, CATEGORIES, SETTINGS, {"file": "made up"})


@pytest.fixture(scope="session")
def tiny_model(tiny_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint file of a model that runs in milliseconds and finds five objects anywhere."""
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    save_checkpoint(tiny_checkpoint, path)
    return path
