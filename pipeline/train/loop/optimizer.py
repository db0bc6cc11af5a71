"""AdamW, its parameter groups, and the learning rate as a function of the iteration.

Values and rules are those of the published Swin detectors: AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101), linear
warm-up, and steps at the starts of given epochs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

# Parts of a parameter's name, as in the published config. Biases outside of norms do decay, as there. The norms of
# the RoI heads do not; the published pattern misses them, because its names call them "bn".
NO_DECAY = ("norm", "relative_position_bias_table")


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamW's; the defaults are the published ones.

    Attributes:
        lr: after the warm-up and before the first step.
        betas: decay of the two moments.
        weight_decay: of all parameters but `NO_DECAY`.
        max_grad_norm: longer gradients are scaled down to this L2 norm; ``None`` leaves them, as published.
    """

    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.05
    max_grad_norm: float | None = None


@dataclass(frozen=True)
class Schedule:
    """How the learning rate goes; the defaults are the published ones of 36 epochs.

    Attributes:
        epochs: of the whole training.
        warmup_iterations: over which the factor grows linearly to 1; 0: none.
        warmup_factor: in iteration 0.
        steps: epochs, counted from 0, at whose start the learning rate is multiplied by ``gamma``.
        gamma: see ``steps``.
    """

    epochs: int = 36
    warmup_iterations: int = 500
    warmup_factor: float = 0.001
    steps: tuple[int, ...] = (27, 33)
    gamma: float = 0.1

    def factor(self, iteration: int, iterations_per_epoch: int) -> float:
        """What the learning rate of an iteration, counted from 0, is multiplied by."""
        epoch = iteration // iterations_per_epoch
        factor = self.gamma ** sum(step <= epoch for step in self.steps)
        if iteration >= self.warmup_iterations:
            return factor
        missing = 1 - iteration / self.warmup_iterations
        return factor * (1 - missing * (1 - self.warmup_factor))


def decays(name: str) -> bool:
    """Whether weight decay applies to the parameter of this name."""
    return not any(part in name for part in NO_DECAY)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The trainable parameters, those that decay first, each group in the model's order."""
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    return [
        {"params": [parameter for name, parameter in named if decays(name)], "weight_decay": weight_decay},
        {"params": [parameter for name, parameter in named if not decays(name)], "weight_decay": 0.0},
    ]


def make_optimizer(model: nn.Module, settings: OptimizerSettings) -> torch.optim.AdamW:
    """AdamW over the model's trainable parameters."""
    groups = parameter_groups(model, settings.weight_decay)
    return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """For all groups, from the next step on."""
    for group in optimizer.param_groups:
        group["lr"] = lr
