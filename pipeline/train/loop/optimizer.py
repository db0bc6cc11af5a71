"""AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101) and its parameter groups."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from pipeline.train.loop.settings import OptimizerSettings


def parameter_groups(model: nn.Module, weight_decay: float, decays: Callable[[str], bool]) -> list[dict[str, Any]]:
    """The trainable parameters, those that decay first, each group in the model's order."""
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    return [
        {"params": [parameter for name, parameter in named if decays(name)], "weight_decay": weight_decay},
        {"params": [parameter for name, parameter in named if not decays(name)], "weight_decay": 0.0},
    ]


def make_optimizer(model: nn.Module, settings: OptimizerSettings, decays: Callable[[str], bool]) -> torch.optim.AdamW:
    """AdamW over the model's trainable parameters; ``decays`` tells by a parameter's name whether its weights decay."""
    groups = parameter_groups(model, settings.weight_decay, decays)
    return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """For all groups, from the next step on."""
    for group in optimizer.param_groups:
        group["lr"] = lr
