from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline.train.loop.optimizer import WeightAverage


def model(value: float) -> nn.Module:
    norm = nn.BatchNorm2d(2)
    with torch.no_grad():
        norm.weight.fill_(value)
        norm.running_mean.fill_(10 * value)
    norm.num_batches_tracked.fill_(int(value))
    return norm


@pytest.mark.parametrize(
    ("num_steps", "decay"), [(1, 2 / 11), (8, 9 / 18), (89, 90 / 99), (80000, 0.99)], ids=["1", "8", "89", "late"]
)
def test_decay_grows(num_steps: int, decay: float) -> None:
    assert WeightAverage({}, 0.99).decay_at(num_steps) == pytest.approx(decay)


def test_formula_with_buffers() -> None:
    average = WeightAverage(model(1.0).state_dict(), 0.9)
    average.update(model(2.0), 1000)
    average.update(model(4.0), 1001)
    expected = 0.9 * (0.9 * 1 + 0.1 * 2) + 0.1 * 4
    torch.testing.assert_close(average.weights["weight"], torch.full((2,), expected))
    torch.testing.assert_close(average.weights["running_mean"], torch.full((2,), 10 * expected))
    assert int(average.weights["num_batches_tracked"]) == 4


def test_it_is_a_copy() -> None:
    source = model(1.0)
    average = WeightAverage(source.state_dict(), 0.9)
    with torch.no_grad():
        source.weight.fill_(7.0)
    assert average.weights["weight"].tolist() == [1.0, 1.0]


def test_load() -> None:
    average = WeightAverage(model(1.0).state_dict(), 0.9)
    average.load(model(5.0).state_dict())
    assert average.weights["weight"].tolist() == [5.0, 5.0]
    assert int(average.weights["num_batches_tracked"]) == 5
