"""Samples of any sizes -> one batch on the model's device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pipeline.images.sizes import padded_size
from pipeline.model.batch import Batch, Target
from pipeline.model.preprocess import normalise
from pipeline.train.sample.sample import Sample


def collate(samples: Sequence[Sample], device: torch.device) -> Batch:
    """Normalise as the model does when it predicts, and pad to the smallest common multiples of 32.

    Args:
        samples: what becomes the batch, at least one.
        device: where the arithmetic runs and the batch lies.
    """
    sizes = [sample.pixels.shape[:2] for sample in samples]
    height, width = padded_size((max(size[0] for size in sizes), max(size[1] for size in sizes)))
    images = torch.zeros(len(samples), 3, height, width, device=device)
    for image, sample in zip(images, samples, strict=True):
        pixels = normalise(_tensor(sample.pixels, device).permute(2, 0, 1))
        image[:, : pixels.shape[1], : pixels.shape[2]] = pixels
    return Batch(
        image_ids=tuple(sample.image_id for sample in samples),
        images=images,
        image_sizes=torch.tensor(sizes, dtype=torch.float32, device=device),
        targets=tuple(_target(sample, device) for sample in samples),
    )


def _target(sample: Sample, device: torch.device) -> Target:
    parts = (sample.boxes, sample.labels, sample.masks, sample.ignored)
    return Target(*(_tensor(part, device) for part in parts))


def _tensor(array: np.ndarray, device: torch.device) -> Tensor:
    # "W": torch takes no read-only memory without a warning, and arrays out of an object store are read-only.
    return torch.from_numpy(np.require(array, requirements=["C", "W"])).to(device, non_blocking=True)
