from __future__ import annotations

import pytest
import torch

from pipeline.model.cascade_mask_rcnn.detector import CascadeMaskRCNN
from pipeline.model.cascade_mask_rcnn.network import decays
from pipeline.train.loop.optimizer import make_optimizer, parameter_groups, set_lr
from pipeline.train.loop.settings import OptimizerSettings, Schedule
from tests.train.loop_cases import TINY

PER_EPOCH = 10


@pytest.mark.parametrize(
    ("iteration", "factor"),
    [
        pytest.param(0, 0.001, id="first"),
        pytest.param(2, 0.001 + 0.999 * 2 / 4, id="half way up"),
        pytest.param(3, 0.001 + 0.999 * 3 / 4, id="last of the warm-up"),
        pytest.param(4, 1.0, id="up"),
        pytest.param(19, 1.0, id="last before the step"),
        pytest.param(20, 0.1, id="step"),
        pytest.param(29, 0.1, id="last before the second step"),
        pytest.param(30, 0.01, id="second step"),
    ],
)
def test_warm_up_and_steps(iteration: int, factor: float) -> None:
    schedule = Schedule(epochs=4, warmup_iterations=4, warmup_factor=0.001, steps=(2, 3))
    assert schedule.factor(iteration, PER_EPOCH) == pytest.approx(factor, rel=1e-12)


def test_published_defaults() -> None:
    """Learning rates that mmcv's step policy gives with warmup_iters=500, warmup_ratio=0.001, step=[27, 33]."""
    schedule, lr, per_epoch = Schedule(), OptimizerSettings().lr, 7330
    assert lr * schedule.factor(0, per_epoch) == pytest.approx(1e-7)
    assert lr * schedule.factor(49, per_epoch) == pytest.approx(9.890e-6, rel=1e-3)
    assert lr * schedule.factor(500, per_epoch) == lr
    assert lr * schedule.factor(27 * per_epoch, per_epoch) == pytest.approx(1e-5)
    assert lr * schedule.factor(36 * per_epoch - 1, per_epoch) == pytest.approx(1e-6)


def test_a_step_within_the_warm_up_counts_too() -> None:
    schedule = Schedule(epochs=2, warmup_iterations=20, warmup_factor=0.0, steps=(1,))
    assert schedule.factor(10, PER_EPOCH) == pytest.approx(0.1 * 0.5)


def test_no_warm_up() -> None:
    assert Schedule(warmup_iterations=0).factor(0, PER_EPOCH) == 1.0


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("backbone.stages.0.blocks.0.attn.qkv.weight", True),
        ("backbone.stages.0.blocks.0.attn.qkv.bias", True),
        ("backbone.stages.0.blocks.0.attn.relative_position_bias_table", False),
        ("backbone.stages.0.blocks.0.norm1.weight", False),
        ("backbone.stages.1.downsample.norm.bias", False),
        ("backbone.patch_embed.norm.weight", False),
        ("backbone.norms.3.bias", False),
        ("box_heads.stages.0.convs.0.norm.weight", False),
        ("box_heads.stages.0.classify.bias", True),
        ("rpn.conv.weight", True),
    ],
)
def test_what_decays(name: str, expected: bool) -> None:
    assert decays(name) is expected
    assert name in dict(CascadeMaskRCNN(TINY).named_parameters())


def test_groups_hold_every_parameter_once() -> None:
    detector = CascadeMaskRCNN(TINY)
    decaying, others = parameter_groups(detector, 0.05, decays)
    assert (decaying["weight_decay"], others["weight_decay"]) == (0.05, 0.0)
    together = [*decaying["params"], *others["params"]]
    assert {id(p) for p in together} == {id(p) for p in detector.parameters()}
    assert len(together) == len(list(detector.parameters()))


def test_frozen_parameters_are_left_out() -> None:
    detector = CascadeMaskRCNN(TINY)
    detector.backbone.requires_grad_(False)
    groups = parameter_groups(detector, 0.05, decays)
    assert not {id(p) for g in groups for p in g["params"]} & {id(p) for p in detector.backbone.parameters()}


def test_one_step_by_hand() -> None:
    """The first step of AdamW is the sign of the gradient times the learning rate; decay comes before it."""
    model = torch.nn.Sequential(torch.nn.Linear(1, 1))
    optimizer = make_optimizer(model, OptimizerSettings(lr=1.0, weight_decay=0.5), decays)
    set_lr(optimizer, 0.1)
    weight = float(model[0].weight.detach())
    (model[0].weight * 3).sum().backward()
    optimizer.step()
    assert float(model[0].weight.detach()) == pytest.approx(weight * (1 - 0.1 * 0.5) - 0.1, abs=1e-6)
