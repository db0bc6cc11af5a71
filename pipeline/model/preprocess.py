"""From an image to the backbone's input: resize, normalise, zero-pad, all on the model's device."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.images.resize import resize_bilinear_uint8
from pipeline.images.sizes import padded_size, scaled_size
from pipeline.model.kernels.resize import normalise
from pipeline.model.settings import TestSettings


def input_shape(image_size: tuple[int, int], settings: TestSettings) -> tuple[int, int]:
    """The padded ``(H, W)`` at which an image of this ``(H, W)`` enters the backbone."""
    return padded_size(scaled_size(image_size, settings.short_side, settings.long_side))


def preprocess(
    image: np.ndarray, settings: TestSettings, device: torch.device, image_size: tuple[int, int] | None = None
) -> tuple[Tensor, tuple[int, int]]:
    """Keep-ratio resize, normalise, then zero-pad right and below: padding is 0 *after* normalising.

    Args:
        image: RGB uint8 ``(H, W, 3)``.
        settings: short and long side.
        device: where the arithmetic runs and the result lies.
        image_size: ``(H, W)`` of the original, where ``image`` was brought to `scaled_size` of it before.

    Returns:
        float32 ``(3, H', W')`` with sides that 32 divides, and the ``(H, W)`` of the resized image in it.
    """
    size = scaled_size(image_size or image.shape[:2], settings.short_side, settings.long_side)
    # "W": torch takes no read-only memory without a warning, and arrays out of an object store are read-only.
    pixels = torch.from_numpy(np.require(image, requirements=["C", "W"])).to(device, non_blocking=True)
    resized = resize_bilinear_uint8(pixels.permute(2, 0, 1).contiguous(), size)
    height, width = padded_size(size)
    return F.pad(normalise(resized), (0, width - size[1], 0, height - size[0])), size
