"""What the list of architectures promises to those who ask it, whatever architectures there are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pipeline.model.architectures import (
    ARCHITECTURES,
    VARIANTS,
    architecture_named,
    architecture_of,
    build,
    giga_macs,
)
from pipeline.model.files.checkpoints import Checkpoint, CheckpointError, load_checkpoint, save_checkpoint
from testing.small_model import SMALL, SMALL_CATEGORIES, SMALL_SETTINGS


@pytest.fixture
def file(tmp_path: Path) -> Path:
    weights = build(SMALL).state_dict()
    save_checkpoint(Checkpoint(weights, SMALL, SMALL_CATEGORIES, SMALL_SETTINGS), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def rewrite(file: Path, **changes: str | None) -> None:
    """Replace or leave out entries of a file's header."""
    header = {**read_header(file), **changes}
    save_file(load_file(file), file, metadata={key: value for key, value in header.items() if value is not None})


def read_header(file: Path) -> dict[str, str]:
    with safe_open(file, framework="pt") as opened:
        return opened.metadata()


def test_names_are_told_apart() -> None:
    assert len({architecture.name for architecture in ARCHITECTURES}) == len(ARCHITECTURES)
    assert len(VARIANTS) == sum(len(architecture.variants) for architecture in ARCHITECTURES)
    for architecture in ARCHITECTURES:
        assert architecture_named(architecture.name) is architecture
        assert all(architecture_of(variant) is architecture for variant in architecture.variants)


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_published_variants_can_be_built(variant) -> None:
    with torch.device("meta"):
        assert build(variant).variant == variant
    assert 0 <= architecture_of(variant).drop_path(variant) < 1


def test_cost_grows_with_the_input_and_is_unknown_for_other_sizes() -> None:
    small, large = (giga_macs("swin_t", area) for area in (400 * 640, 800 * 1280))
    assert small is not None
    assert large == 745.0
    assert small < large
    assert giga_macs("custom", 800 * 1280) is None


def test_files_name_their_architecture(file: Path) -> None:
    assert read_header(file)["architecture"] == architecture_of(SMALL).name
    assert load_checkpoint(file).variant == SMALL


def test_files_that_do_not_name_it_are_of_the_first(file: Path) -> None:
    rewrite(file, architecture=None)
    assert "architecture" not in read_header(file)
    assert load_checkpoint(file).variant == SMALL


def test_an_unknown_architecture_is_refused(file: Path) -> None:
    rewrite(file, architecture="yolo")
    with pytest.raises(CheckpointError, match="architecture 'yolo' is none of cascade_mask_rcnn_swin") as error:
        load_checkpoint(file)
    assert str(error.value).startswith(str(file))


def test_variants_of_other_numbers_of_classes_are_of_the_same_architecture() -> None:
    assert architecture_of(replace(SMALL, num_classes=1)) is architecture_of(SMALL)
