from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pipeline.model.cascade_mask_rcnn.detector import CascadeMaskRCNN
from pipeline.model.cascade_mask_rcnn.network import initialise
from pipeline.model.cascade_mask_rcnn.variants import SWIN_B, SWIN_S, published_drop_path
from pipeline.model.categories import Category
from pipeline.model.files.checkpoints import Checkpoint, CheckpointError, save_checkpoint
from pipeline.train.loop.start import Start, start_from
from tests.train.loop_cases import CATEGORIES, SETTINGS, TINY

OTHERS = tuple(Category(i, f"thing {i}") for i in range(1, 6))
CLASS_LAYERS = [
    f"{head}.stages.{stage}.{layer}.{kind}"
    for head, layers in (("box_heads", ("classify", "regress")), ("mask_heads", ("predict",)))
    for stage in range(3)
    for layer in layers
    for kind in ("weight", "bias")
]


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    detector = CascadeMaskRCNN(TINY)
    initialise(detector, 9)
    return Checkpoint(detector.state_dict(), TINY, CATEGORIES, SETTINGS, {"file": "made up"})


@pytest.fixture
def file(checkpoint: Checkpoint, tmp_path: Path) -> Path:
    save_checkpoint(checkpoint, tmp_path / "detector.safetensors")
    return tmp_path / "detector.safetensors"


def same(start: Start, checkpoint: Checkpoint) -> set[str]:
    """Names of the weights that are the checkpoint's."""
    weights = start.detector.state_dict()
    return {
        name
        for name, tensor in checkpoint.weights.items()
        if tensor.shape == weights[name].shape and torch.equal(tensor, weights[name])
    }


def test_other_classes_get_new_heads_and_all_else_is_kept(file: Path, checkpoint: Checkpoint) -> None:
    start = start_from(file, None, OTHERS, None, seed=0)
    assert sorted(start.reinitialised) == sorted(CLASS_LAYERS)
    assert same(start, checkpoint) >= checkpoint.weights.keys() - set(CLASS_LAYERS)
    assert start.detector.variant.num_classes == 5
    assert start.categories == OTHERS
    assert start.settings == SETTINGS
    layers = "box_heads.stages.*.classify, box_heads.stages.*.regress, mask_heads.stages.*.predict"
    assert start.said == (
        "starting from detector.safetensors: it has 2 classes and the data 5 others; initial weights for "
        f"{layers}; every other weight is the file's",
    )


def test_as_many_classes_of_other_names_get_new_heads_too(file: Path, checkpoint: Checkpoint) -> None:
    start = start_from(file, None, CATEGORIES[::-1], None, seed=0)
    assert sorted(start.reinitialised) == sorted(CLASS_LAYERS)
    assert "box_heads.stages.0.classify.weight" not in same(start, checkpoint)


def test_the_same_classes_keep_everything(file: Path, checkpoint: Checkpoint) -> None:
    renumbered = tuple(Category(category.id + 50, category.name) for category in CATEGORIES)
    start = start_from(file, TINY, renumbered, None, seed=0)
    assert same(start, checkpoint) == checkpoint.weights.keys()
    assert start.reinitialised == ()
    assert start.categories == renumbered


def test_another_variant_than_the_files(file: Path) -> None:
    with pytest.raises(CheckpointError, match="is a tiny, not the custom of the config"):
        start_from(file, replace(TINY, name="custom", fpn_channels=16), OTHERS, None, seed=0)


def test_an_imagenet_backbone(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """In microsoft's layout: everything of the backbone but the output norms is the file's."""
    backbone = {
        name.removeprefix("backbone."): tensor
        for name, tensor in checkpoint.weights.items()
        if name.startswith("backbone.") and not name.startswith("backbone.norms.")
    }
    official = {}
    for name, tensor in backbone.items():
        stage = int(name.split(".")[1]) if name.startswith("stages.") else 0
        moved = f"layers.{stage - 1}.{name.split('.', 2)[2]}" if ".downsample." in name else name
        official[moved.replace("stages.", "layers.")] = tensor
    save_file(official | {"norm.weight": torch.ones(64), "head.weight": torch.ones(10, 64)}, tmp_path / "b.safetensors")
    start = start_from(tmp_path / "b.safetensors", TINY, OTHERS, None, seed=0)
    assert {f"backbone.{name}" for name in backbone} <= same(start, checkpoint)
    assert "rpn.conv.weight" not in same(start, checkpoint)
    assert "backbone" in start.said[0]
    other = replace(TINY, depths=(2, 1, 2, 1))
    with pytest.raises(CheckpointError, match="do not fit"):
        start_from(tmp_path / "b.safetensors", other, OTHERS, None, seed=0)


def test_from_scratch() -> None:
    first, second = (start_from(None, TINY, OTHERS, None, seed) for seed in (0, 0))
    weights = first.detector.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in second.detector.state_dict().items())
    assert first.detector.variant == replace(TINY, num_classes=5)


@pytest.mark.parametrize(
    ("variant", "categories", "message"),
    [(None, OTHERS, "needs a variant"), (TINY, (), "at least one class")],
    ids=["no variant", "no classes"],
)
def test_nothing_to_start_from(variant, categories, message) -> None:
    with pytest.raises(ValueError, match=message):
        start_from(None, variant, categories, None, seed=0)


def test_drop_path() -> None:
    assert (published_drop_path(SWIN_B), published_drop_path(SWIN_S)) == (0.3, 0.2)
    blocks = [
        block for stage in start_from(None, TINY, OTHERS, 0.4, 0).detector.backbone.stages for block in stage.blocks
    ]
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
