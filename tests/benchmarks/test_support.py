"""Times mean what they say, and pictures have the sizes that they should."""

from __future__ import annotations

from collections import Counter
from unittest import mock

import pytest
import torch
from torch import nn

from benchmarks.support import timing
from benchmarks.support.textures import coco_like_sizes, textured_pictures
from benchmarks.support.timing import PARTS, PartTimes, Times, alternating, timed
from pipeline.model.preprocess import input_shape
from pipeline.model.settings import TestSettings

CPU = torch.device("cpu")


class Parts(nn.Module):
    """A module with parts of a detector's names, each called once."""

    def __init__(self) -> None:
        super().__init__()
        for name in PARTS:
            setattr(self, name, nn.Identity())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for name in PARTS:
            x = getattr(self, name)(x)
        return x


def hooks(module: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


def test_the_device_is_waited_for_around_a_round_and_not_inside_of_it() -> None:
    story: list[str] = []

    def now(device: torch.device) -> float:
        story.append("clock")
        return float(len(story))

    with mock.patch.object(timing, "now", now):
        times = timed(lambda: story.append("work"), CPU, rounds=2, warm_up=1)
    assert story == ["clock", "work", *["clock", "work", "clock"] * 2]
    assert times.rounds_s == (2.0, 2.0)


def test_what_is_compared_takes_turns() -> None:
    story: list[str] = []
    calls = {name: lambda name=name: story.append(name) for name in "ab"}
    times = alternating(calls, CPU, rounds=2, warm_up=1)
    assert story == ["a", "b"] * 3
    assert {name: len(each.rounds_s) for name, each in times.items()} == {"a": 2, "b": 2}


def test_best_and_median() -> None:
    times = Times((3.0, 1.0, 8.0))
    assert (times.best_s, times.median_s) == (1.0, 3.0)


def test_part_times_sum_over_calls() -> None:
    model = Parts()
    with (
        mock.patch.object(timing.time, "perf_counter", mock.Mock(side_effect=range(100))),
        PartTimes(model, CPU) as parts,
    ):
        model(torch.zeros(1))
        model(torch.zeros(1))
    assert parts.seconds == dict.fromkeys(PARTS, 2)


def test_hooks_are_gone_after_use() -> None:
    model = Parts()
    with PartTimes(model, CPU):
        assert hooks(model) == 2 * len(PARTS)
    assert hooks(model) == 0


def test_hooks_are_gone_after_an_error() -> None:
    model = Parts()
    parts = PartTimes(model, CPU)

    def fail() -> None:
        with parts:
            model(torch.zeros(1))
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError):
        fail()
    assert hooks(model) == 0
    assert parts.seconds == dict.fromkeys(PARTS, 0.0)


def test_sizes_make_as_many_shapes_as_photographs() -> None:
    """The count of a made-up mix: about forty padded shapes at the published input size, none of most of them."""
    shapes = Counter(input_shape(size, TestSettings()) for size in coco_like_sizes(5000))
    assert 35 <= len(shapes) <= 45
    assert shapes.most_common(1)[0][1] < 2500
    assert coco_like_sizes(10) == coco_like_sizes(10)


def test_pictures_have_texture_and_differ() -> None:
    first, second = textured_pictures([(40, 60), (40, 60)])
    assert first.shape == (40, 60, 3)
    assert first.std() > 20
    assert (first != second).any()
