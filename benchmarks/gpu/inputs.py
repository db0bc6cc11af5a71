"""The forward by itself, on inputs that lie on the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch

from benchmarks.gpu.bench import Bench
from pipeline.images.sizes import scaled_size
from pipeline.model.kernels.resize import resize_normalise
from pipeline.model.preprocess import input_shape

if TYPE_CHECKING:
    from pipeline.model.detections import BatchDetections
    from pipeline.model.predictor import Predictor


def forward_of(
    predictor: Predictor, bench: Bench, batch: int, every_candidate: bool = False
) -> Callable[[], BatchDetections]:
    """A call that runs the detector on the same pictures each time, and waits for nothing."""
    pictures, settings, device = bench.pictures(batch), predictor.settings, bench.device
    height, width = pictures[0].shape[:2]
    size = scaled_size((height, width), settings.short_side, settings.long_side)
    shape = input_shape((height, width), settings)
    offsets = np.arange(batch)[:, None] * pictures[0].size
    table = torch.from_numpy(np.concatenate([offsets, np.tile((height, width, *size), (batch, 1))], axis=1)).to(device)
    pixels = torch.from_numpy(np.concatenate([picture.ravel() for picture in pictures])).to(device)
    with torch.inference_mode():
        images = resize_normalise(pixels, table, *shape)
        sizes = torch.tensor([size] * batch, dtype=torch.float32, device=device)
        factors = torch.tensor([(size[1] / width, size[0] / height)] * batch, dtype=torch.float32, device=device)
        plan = predictor.detector.plan(shape)

    @torch.inference_mode()
    def forward() -> BatchDetections:
        return predictor.detector(images, sizes, factors, plan, settings, every_candidate)

    return forward
