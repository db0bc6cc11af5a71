"""Weights that several test files need, made once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from pipeline.model.cascade_mask_rcnn.layouts import to_native
from pipeline.model.categories import COCO_CATEGORIES, Category
from pipeline.model.files.checkpoints import Checkpoint
from pipeline.model.settings import TestSettings
from testing.small_model import SMALL, SMALL_CATEGORIES, SMALL_SETTINGS
from tests.model.golden_weights import GOLDEN_VARIANT, golden_weights, official_weights


@pytest.fixture(scope="module", autouse=True)
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    """One thread for small tensors: several only wait for each other, for long where cores are shared."""
    before = torch.get_num_threads()
    if not getattr(request.module, "NEEDS_ALL_CORES", False):
        torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def golden_state() -> dict[str, Tensor]:
    """The golden weights under the official names."""
    return golden_weights()


@pytest.fixture(scope="session")
def golden_checkpoint(golden_state: dict[str, Tensor]) -> Checkpoint:
    settings = TestSettings(short_side=200, long_side=333)
    return Checkpoint(to_native(golden_state, "official"), GOLDEN_VARIANT, COCO_CATEGORIES, settings)


@pytest.fixture(scope="session")
def small_state() -> dict[str, Tensor]:
    """Weights of the small model under the official names."""
    return official_weights(SMALL)


@pytest.fixture(scope="session")
def small_checkpoint(small_state: dict[str, Tensor]) -> Checkpoint:
    return Checkpoint(to_native(small_state, "official"), SMALL, SMALL_CATEGORIES, SMALL_SETTINGS)


@pytest.fixture(scope="session")
def five_categories() -> tuple[Category, ...]:
    return SMALL_CATEGORIES
