"""Each rewrite by itself, and all together, leaves the detections of the golden weights as they are."""

from __future__ import annotations

import copy
import pickle
import weakref
from collections.abc import Callable
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from torch import nn

import pipeline.model.speed as speed_module
from pipeline.model.cascade_mask_rcnn.cascade import BoxHead
from pipeline.model.cascade_mask_rcnn.roi import fold_batch_norm
from pipeline.model.detections import Detections
from pipeline.model.files.checkpoints import Checkpoint
from pipeline.model.predictor import load_model
from pipeline.model.speed import PackedLinear, SpeedOptions, pack_linear
from testing.small_model import SMALL
from tests.model.compare import assert_same
from tests.model.golden_cases import CASES, golden

NEEDS_ALL_CORES = True
# What changes the detector itself, and costs no minutes.
SWITCHES = [
    f.name for f in fields(SpeedOptions) if f.type in ("bool", bool) and f.name not in ("compile", "cuda_graphs")
]
# Fewer proposals than in the published settings: the box heads' time is proportional to them.
NUM_PROPOSALS = 200


def only(*names: str) -> SpeedOptions:
    """These switches on, all others off."""
    return replace(SpeedOptions.none(), **dict.fromkeys(names, True))


def detect(checkpoint: Checkpoint, speed: SpeedOptions) -> list[Detections]:
    """A batch of two, and an image of another size."""
    settings = replace(
        checkpoint.settings, proposals=NUM_PROPOSALS, proposals_per_level=NUM_PROPOSALS, score_threshold=0.02
    )
    small, tall = (golden(case).image for case in CASES)
    return load_model(checkpoint, "cpu", settings=settings, speed=speed).predict([small, tall, tall[:, ::-1]])


@pytest.fixture(scope="module")
def plain(golden_checkpoint: Checkpoint) -> list[Detections]:
    found = detect(golden_checkpoint, SpeedOptions.none())
    assert all(len(image) > 5 for image in found)
    return found


def test_none_means_none() -> None:
    assert not any(getattr(SpeedOptions.none(), f.name) for f in fields(SpeedOptions))
    assert not SpeedOptions().compile


CHOICES = {**{name: only(name) for name in SWITCHES}, "all": only(*SWITCHES)}


@pytest.mark.parametrize("speed", CHOICES.values(), ids=CHOICES.keys())
def test_detections_stay_the_same(speed: SpeedOptions, golden_checkpoint: Checkpoint, plain: list[Detections]) -> None:
    found = detect(golden_checkpoint, speed)
    differences = [assert_same(reference, image) for reference, image in zip(plain, found, strict=True)]
    box_px, score = map(max, zip(*differences, strict=True))
    masks = max(np.abs(np.sort(a.masks, 0) - np.sort(b.masks, 0)).max() for a, b in zip(plain, found, strict=True))
    print(f"largest difference: box {box_px:.1e} px, score {score:.1e}, mask {masks:.1e}")
    assert box_px < 0.01
    assert score < 1e-4
    assert masks < 1e-3


def test_folded_batch_norm_equals_the_norm() -> None:
    torch.manual_seed(0)
    head = BoxHead(SMALL).eval().requires_grad_(False)
    for module in head.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.01, 4)
            module.weight.normal_()
            module.bias.normal_()
    pooled = torch.randn(8, SMALL.fpn_channels, 7, 7)
    expected = head(pooled)
    fold_batch_norm(head)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in head.modules())
    for ours, reference in zip(head(pooled), expected, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-5, atol=1e-5 * float(reference.abs().max()))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 24), (1000, 24), (2, 49, 24), (0, 24), (3, 0, 24)], ids=str)
def test_packed_linear_equals_the_layer(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(24, 40, bias=bias)
    x = torch.randn(*shape[:-1], 2 * shape[-1])[..., ::2]  # not contiguous
    ours, reference = PackedLinear(layer)(x), layer.double()(x.double())
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), reference.detach(), rtol=0, atol=5e-6)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])  # noqa: S301
def test_packed_linear_can_be_copied(copied: Callable[[nn.Module], nn.Module]) -> None:
    layer, x = PackedLinear(nn.Linear(24, 40)), torch.randn(7, 24)
    assert torch.equal(copied(layer)(x), layer(x))


def test_packing_holds_no_weights_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    module = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(5)))
    layers = [weakref.ref(block[0]) for block in module]
    alive = []

    class Watched(PackedLinear):
        def __init__(self, layer: nn.Linear) -> None:
            alive.append(sum(layer() is not None for layer in layers))
            super().__init__(layer)

    monkeypatch.setattr(speed_module, "PackedLinear", Watched)
    pack_linear(module)
    assert alive == [5, 4, 3, 2, 1]


def test_linear_layers_are_packed_where_that_is_faster(small_checkpoint: Checkpoint) -> None:
    def packed(precision: str, speed: SpeedOptions) -> set[str]:
        detector = load_model(small_checkpoint, "cpu", precision, speed=speed).detector
        return {name for name, module in detector.named_modules() if isinstance(module, PackedLinear)}

    everywhere = packed("fp32", SpeedOptions())
    assert {"box_heads.stages.0.fc", "backbone.stages.0.blocks.0.mlp.fc1"} <= everywhere
    assert packed("fp32", SpeedOptions.none()) == set()
    # Of a model in half precision, the layers that stay float32.
    last = {f"box_heads.stages.{i}.{name}" for i in range(3) for name in ("classify", "regress")}
    assert packed("bf16", SpeedOptions()) == last
