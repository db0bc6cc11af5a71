"""Where training begins: nothing, an ImageNet backbone, or a detector, perhaps of other classes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from pipeline.model.architecture import Variant
from pipeline.model.architectures import architecture_of, build, network_of
from pipeline.model.categories import Category
from pipeline.model.detector import Detector
from pipeline.model.files.backbones import load_backbone, read_backbone
from pipeline.model.files.checkpoints import BackboneOnlyError, Checkpoint, CheckpointError, load_checkpoint
from pipeline.model.settings import TestSettings


@dataclass(frozen=True)
class Start:
    """A detector to train.

    Attributes:
        detector: on the CPU, in training mode.
        categories: what its labels stand for.
        settings: test settings that are written beside the weights.
        source: where the weights come from, for the metadata.
        reinitialised: names of the weights of a checkpoint that were not taken over.
        said: what people should know, a line each.
    """

    detector: Detector
    categories: tuple[Category, ...]
    settings: TestSettings
    source: dict[str, Any]
    reinitialised: tuple[str, ...] = ()
    said: tuple[str, ...] = ()


def start_from(
    path: str | Path | None,
    variant: Variant | None,
    categories: Sequence[Category],
    drop_path_rate: float | None,
    seed: int,
) -> Start:
    """The detector to begin with.

    Args:
        path: a detector or an ImageNet backbone in any layout that we read; ``None``: from scratch.
        variant: the sizes, whatever its ``num_classes``; ``None``: the file's own.
        categories: that it is to learn.
        drop_path_rate: of the last block (Huang et al. 2016, arXiv 1603.09382); ``None``: that of the published
            training.
        seed: of all initial weights that no file gives.

    Raises:
        CheckpointError: the file cannot be used, or is not of this variant.
        ValueError: neither file nor variant, or no categories.
    """
    if not categories:
        raise ValueError("training needs at least one class")
    if path is None:
        if variant is None:
            raise ValueError("training from scratch needs a variant: give one, or a checkpoint to start from")
        return _from_scratch(variant, tuple(categories), drop_path_rate, seed)
    try:
        checkpoint = load_checkpoint(path)
    except BackboneOnlyError:
        return _from_backbone(Path(path), variant, tuple(categories), drop_path_rate, seed)
    return _from_detector(path, checkpoint, variant, tuple(categories), drop_path_rate, seed)


def build_for_training(variant: Variant, drop_path_rate: float | None) -> Detector:
    """A detector with weights of no meaning; a drop path rate of ``None`` is that of the published training."""
    return build(variant, architecture_of(variant).drop_path(variant) if drop_path_rate is None else drop_path_rate)


def _from_scratch(variant: Variant, categories: tuple[Category, ...], drop_path_rate: float | None, seed: int) -> Start:
    detector = _detector(variant, categories, drop_path_rate)
    network_of(detector.variant).initialise(detector, seed)
    return Start(detector, categories, TestSettings(), {"start": "random weights"}, said=("starting from scratch",))


def _from_backbone(
    path: Path, variant: Variant | None, categories: tuple[Category, ...], drop_path_rate: float | None, seed: int
) -> Start:
    found = read_backbone(path)
    detector = _detector(variant or found.variant, categories, drop_path_rate)
    network_of(detector.variant).initialise(detector, seed)
    load_backbone(path, detector.get_submodule("backbone"))
    said = f"starting from the ImageNet backbone {path.name}; all else has initial weights"
    return Start(detector, categories, TestSettings(), {"start": found.source}, said=(said,))


def _from_detector(
    path: str | Path,
    checkpoint: Checkpoint,
    variant: Variant | None,
    categories: tuple[Category, ...],
    drop_path_rate: float | None,
    seed: int,
) -> Start:
    own = checkpoint.variant
    if variant is not None and replace(variant, name=own.name, num_classes=own.num_classes) != own:
        raise CheckpointError(f"{path} is a {own.name}, not the {variant.name} of the config: leave the variant out")
    detector = _detector(own, categories, drop_path_rate)
    names: list[str] = []
    if _names(checkpoint.categories) == _names(categories):
        said = f"starting from {Path(path).name} with all its weights: it has the same {len(categories)} classes"
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            names = network_of(own).initialise_class_layers(detector)
        said = (
            f"starting from {Path(path).name}: it has {own.num_classes} classes and the data {len(categories)} "
            f"others; initial weights for {', '.join(_layers(names))}; every other weight is the file's"
        )
    kept = {name: tensor for name, tensor in checkpoint.weights.items() if name not in names}
    missing, unexpected = detector.load_state_dict(kept, strict=False)
    assert sorted(missing) == sorted(names)
    assert not unexpected
    return Start(detector, categories, checkpoint.settings, {"start": checkpoint.source}, tuple(names), (said,))


def _detector(variant: Variant, categories: tuple[Category, ...], drop_path_rate: float | None) -> Detector:
    return build_for_training(replace(variant, num_classes=len(categories)), drop_path_rate)


def _layers(names: Sequence[str]) -> list[str]:
    """What weights belong to, those that differ in a number as one: ``heads.*.classify``."""
    layers = (re.sub(r"\.\d+(?=\.)", ".*", name.rpartition(".")[0]) for name in names)
    return list(dict.fromkeys(layers))


def _names(categories: Sequence[Category]) -> list[str]:
    return [category.name for category in categories]
