"""An exponential moving average of a model's weights (Polyak & Juditsky 1992), buffers of its BatchNorms included."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class WeightAverage:
    """``average = d * average + (1 - d) * weights`` after each step, with ``d = min(decay, (1 + n) / (10 + n))``.

    The bound, n being the steps taken, lets the average forget the initial weights in short trainings
    (``tf.train.ExponentialMovingAverage`` has it). Whole numbers (BatchNorm's counters) are copied.

    Args:
        weights: a model's state dict, which the average starts from.
        decay: in [0, 1).

    Attributes:
        weights: the average, under the names of the state dict and on its device.
    """

    def __init__(self, weights: Mapping[str, Tensor], decay: float) -> None:
        self.decay = decay
        self.weights = {name: tensor.detach().clone() for name, tensor in weights.items()}

    def decay_at(self, num_steps: int) -> float:
        """``d`` of the update after the step of this number, counted from 1."""
        return min(self.decay, (1 + num_steps) / (10 + num_steps))

    @torch.no_grad()
    def update(self, model: nn.Module, num_steps: int) -> None:
        """Take in the model's weights after ``num_steps`` steps."""
        weight = 1 - self.decay_at(num_steps)
        current = model.state_dict()
        real = [name for name, tensor in current.items() if tensor.is_floating_point()]
        torch._foreach_lerp_([self.weights[name] for name in real], [current[name] for name in real], weight)
        for name in current.keys() - set(real):
            self.weights[name].copy_(current[name])

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Go on from an average that was saved."""
        for name, tensor in self.weights.items():
            tensor.copy_(weights[name])
