"""One image as a detector gets it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pipeline.images.sizes import scaled_size
from pipeline.model.preprocess import input_shape, pack, packed_size, preprocess
from pipeline.model.settings import TestSettings


def preprocessed(
    image: np.ndarray, settings: TestSettings, image_size: tuple[int, int] | None = None
) -> tuple[Tensor, tuple[int, int]]:
    """The input float32 ``(3, H, W)``, and the ``(h, w)`` of the image in it before padding.

    Args:
        image: RGB uint8 ``(h, w, 3)``.
        settings: short and long side.
        image_size: the original ``(h, w)``, where ``image`` was brought to `scaled_size` of it before.
    """
    original = image_size or image.shape[:2]
    buffer = np.empty(packed_size([image]), np.uint8)
    pack([image], [original], settings, buffer)
    inputs = preprocess(torch.from_numpy(buffer), 1, input_shape(original, settings))
    return inputs.images[0], scaled_size(original, settings.short_side, settings.long_side)
