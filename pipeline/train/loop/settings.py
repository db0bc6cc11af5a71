"""How a training runs: its optimiser, the learning rate as a function of the iteration, and the loop. No torch.

Defaults are those of the published detectors: AdamW, linear warm-up, and steps at the starts of given epochs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pipeline.model.settings import PUBLISHED, Sampling


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamW's; the defaults are the published ones.

    Attributes:
        lr: after the warm-up and before the first step.
        betas: decay of the two moments.
        weight_decay: of the parameters that decay in this architecture.
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


@dataclass(frozen=True)
class LoopSettings:
    """How the loop runs.

    Attributes:
        seed: of sampling and drop path.
        optimizer, schedule: see there.
        sampling: anchors and RoIs that the losses look at.
        precision: ``bf16`` runs convolutions and matrix products in bfloat16 by autocast; losses are float32.
        activation_checkpointing: the backbone's blocks are computed again in the backward pass: less memory, slower.
        ema_decay: of the average of the weights, which is then what is validated and written; ``None``: no average.
        evaluate_every: epochs between two validations; the last epoch has one, too.
        save_every: iterations between two ``last`` within an epoch; ``None``: at the ends of epochs only.
        log_every: iterations between two log lines.
        validation_batch_size: images on the device at once.
    """

    seed: int = 0
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    schedule: Schedule = field(default_factory=Schedule)
    sampling: Sampling = PUBLISHED
    precision: Literal["fp32", "bf16"] = "fp32"
    activation_checkpointing: bool = False
    ema_decay: float | None = None
    evaluate_every: int = 1
    save_every: int | None = None
    log_every: int = 50
    validation_batch_size: int = 8
