"""How a training runs: its optimiser, the learning rate as a function of the iteration, and the loop. No torch.

Defaults are those of the published detectors: AdamW, linear warm-up, and steps at the starts of given epochs. These
are sections of the job's config and what the loop takes.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, Strict, model_validator

from pipeline.config.base import Count, PositiveFloat, PositiveInt, Section
from pipeline.model.settings import PUBLISHED_SAMPLING, Precision, SamplingConfig

# What a training leaves in its folder: the model as it is now, and the one with the best validation figure.
LAST, BEST = "last.safetensors", "best.safetensors"
# Of the published detectors: 8 GPUs with 2 images each.
PUBLISHED_LR, PUBLISHED_STEP_SIZE = 1e-4, 16

Fraction = Annotated[float, Field(ge=0, lt=1)]


class OptimizerConfig(Section):
    """AdamW, and how the learning rate goes. Defaults are the published ones."""

    lr: PositiveFloat = Field(default=PUBLISHED_LR, description="Learning rate after the warm-up.")
    betas: Annotated[tuple[Fraction, Fraction], Strict(False)] = Field(
        default=(0.9, 0.999), description="Decay of the two moments."
    )
    weight_decay: Annotated[float, Field(ge=0)] = Field(
        default=0.05, description="Of all weights but norms and relative position biases."
    )
    max_grad_norm: PositiveFloat | None = Field(
        default=None, description="Longer gradients are scaled down to this. null: never."
    )
    ema_decay: Fraction | None = Field(
        default=None, description="Of a moving average of the weights, which is then what is written. null: none."
    )


class ScheduleConfig(Section):
    """How long, and with which learning rate. Defaults are the published ones (36 epochs)."""

    epochs: PositiveInt = Field(default=36, description="Of the whole training.")
    warmup_iterations: Count = Field(default=500, description="Steps over which the learning rate grows.")
    warmup_factor: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.001, description="Share of the learning rate in the first step."
    )
    steps: Annotated[tuple[PositiveInt, ...], Strict(False)] = Field(
        default=(27, 33), description="Finished epochs after which the learning rate drops."
    )
    gamma: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.1, description="What it is multiplied by at each of them."
    )

    @model_validator(mode="after")
    def _steps_ascend(self) -> ScheduleConfig:
        if list(self.steps) != sorted(set(self.steps)):
            raise ValueError("steps must ascend")
        return self

    def factor(self, iteration: int, iterations_per_epoch: int) -> float:
        """What the learning rate of an iteration, counted from 0, is multiplied by."""
        epoch = iteration // iterations_per_epoch
        factor = self.gamma ** sum(step <= epoch for step in self.steps)
        if iteration >= self.warmup_iterations:
            return factor
        missing = 1 - iteration / self.warmup_iterations
        return factor * (1 - missing * (1 - self.warmup_factor))


class LoopConfig(Section):
    """What the loop takes of the job's config."""

    sampling: SamplingConfig = Field(
        default=PUBLISHED_SAMPLING, description="How much of each image the losses look at."
    )
    optimizer: OptimizerConfig = Field(default=OptimizerConfig(), description="AdamW.")
    schedule: ScheduleConfig = Field(default=ScheduleConfig(), description="How long.")
    precision: Precision = Field(default="fp32", description="bf16: faster on GPUs, by autocast.")
    activation_checkpointing: bool = Field(
        default=False, description="Compute the backbone's activations twice: less memory, slower."
    )
    evaluate_every: PositiveInt = Field(default=1, description="Epochs between two validations.")
    log_every: PositiveInt = Field(default=50, description="Steps between two lines of the log.")
    seed: Count = Field(default=0, description="Of everything that is drawn.")
