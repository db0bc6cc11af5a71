"""A loss that is no number ends training, and says which images it came from."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from pipeline.errors import RunError
from pipeline.model.batch import Batch


class NonFiniteLoss(RunError):
    """A part of the loss is NaN or infinite."""


def check_finite(losses: Mapping[str, Tensor], batch: Batch) -> None:
    """Check that every part of the loss is a number; waits for the device once.

    Raises:
        NonFiniteLoss: naming the parts and the images.
    """
    values = torch.stack([loss.detach() for loss in losses.values()]).tolist()
    bad = {name: value for name, value in zip(losses, values, strict=True) if not math.isfinite(value)}
    if not bad:
        return
    parts = ", ".join(f"{name} = {value}" for name, value in bad.items())
    images = ", ".join(map(str, batch.image_ids))
    raise NonFiniteLoss(
        f"loss is not finite ({parts}) in the batch of image ids {images}: look at these images and their "
        "annotations; if they are sound, lower the learning rate or clip gradients"
    )
