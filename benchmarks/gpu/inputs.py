"""The forward by itself, on inputs that lie on the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch

from benchmarks.gpu.bench import Bench
from pipeline.model.preprocess import input_shape, pack, packed_size, preprocess

if TYPE_CHECKING:
    from pipeline.model.detections import BatchDetections
    from pipeline.model.predictor import Predictor


def forward_of(
    predictor: Predictor, bench: Bench, batch: int, every_candidate: bool = False
) -> Callable[[], BatchDetections]:
    """A call that runs the detector on the same pictures each time, and waits for nothing."""
    pictures, settings, device = bench.pictures(batch), predictor.settings, bench.device
    originals = [picture.shape[:2] for picture in pictures]
    shape = input_shape(originals[0], settings)
    buffer = np.empty(packed_size(pictures), np.uint8)
    pack(pictures, originals, settings, buffer)
    with torch.inference_mode():
        inputs = preprocess(torch.from_numpy(buffer).to(device), batch, shape)
        plan = predictor.detector.plan(shape)

    @torch.inference_mode()
    def forward() -> BatchDetections:
        return predictor.detector(*inputs, plan, settings, every_candidate)

    return forward
