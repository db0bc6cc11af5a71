from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.model.categories import Category
from pipeline.model.files.checkpoints import Checkpoint, save_checkpoint
from testing.small_model import TINY, TINY_SETTINGS, random_checkpoint

CATEGORIES = (Category(7, "Äpfel"), Category(3, "cat"), Category(12, "traffic light"))


@pytest.fixture(scope="session")
def tiny_checkpoint() -> Checkpoint:
    return random_checkpoint(TINY, CATEGORIES, TINY_SETTINGS)


@pytest.fixture(scope="session")
def tiny_model(tiny_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint file of a model that runs in milliseconds and finds five objects anywhere."""
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    save_checkpoint(tiny_checkpoint, path)
    return path
