"""What a step does to the weights: AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101), and their moving average."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.train.loop.settings import OptimizerConfig


def parameter_groups(model: nn.Module, weight_decay: float, decays: Callable[[str], bool]) -> list[dict[str, Any]]:
    """The trainable parameters, those that decay first, each group in the model's order."""
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    return [
        {"params": [parameter for name, parameter in named if decays(name)], "weight_decay": weight_decay},
        {"params": [parameter for name, parameter in named if not decays(name)], "weight_decay": 0.0},
    ]


def make_optimizer(model: nn.Module, settings: OptimizerConfig, decays: Callable[[str], bool]) -> torch.optim.AdamW:
    """AdamW over the model's trainable parameters; ``decays`` tells by a parameter's name whether its weights decay."""
    groups = parameter_groups(model, settings.weight_decay, decays)
    return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """For all groups, from the next step on."""
    for group in optimizer.param_groups:
        group["lr"] = lr


class WeightAverage:
    """An exponential moving average of weights (Polyak & Juditsky 1992), buffers of BatchNorms included.

    ``average = d * average + (1 - d) * weights`` after each step, with ``d = min(decay, (1 + n) / (10 + n))``.
    The bound, n being the steps taken, lets the average forget the initial weights in short trainings
    (``tf.train.ExponentialMovingAverage`` has it). Whole numbers (BatchNorm's counters) are copied.

    Args:
        weights: a model's state dict, which the average starts from.
        decay: share of the average that a step keeps, in [0, 1).

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
