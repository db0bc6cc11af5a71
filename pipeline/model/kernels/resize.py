"""From a batch of decoded images to the backbone's input: resize, normalise, zero-pad.

B images of a batch, H W of the padded input; sizes are ``(H, W)``.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from pipeline.images.resize import resize_bilinear_uint8
from pipeline.model.settings import PIXEL_MEAN, PIXEL_STD


@torch.library.custom_op("maskfleet::resize_normalise", mutates_args=(), device_types="cpu")
def resize_normalise(pixels: Tensor, table: Tensor, height: int, width: int) -> Tensor:
    """The images of a batch, each resized as by `resize_bilinear_uint8`, then as by `normalise`, then padded.

    Padding is right and below, and 0 *after* normalising. Not a bit differs between devices.

    Args:
        pixels: uint8 ``(n,)``: the images laid end to end, each RGB ``(h, w, 3)``.
        table: int64 ``(B, 5)``, a row for each image: where it begins in `pixels`, its h and w, and the height and
            width that it is resized to. On CUDA its values are not checked: a wrong one reads elsewhere.
        height: H, no less than any image is resized to.
        width: W, likewise.

    Returns:
        float32 ``(B, 3, H, W)``.
    """
    inputs = torch.zeros((len(table), 3, height, width))
    for row, (offset, h, w, target_h, target_w) in zip(inputs, table.tolist(), strict=True):
        image = pixels[offset : offset + h * w * 3].view(h, w, 3).permute(2, 0, 1).contiguous()
        row[:, :target_h, :target_w] = normalise(resize_bilinear_uint8(image, (target_h, target_w)))
    return inputs


@resize_normalise.register_kernel("cuda")
def _(pixels: Tensor, table: Tensor, height: int, width: int) -> Tensor:
    from pipeline.model.kernels import cuda

    return cuda.resize_normalise(pixels, table, height, width, PIXEL_MEAN, PIXEL_STD)


@resize_normalise.register_fake
def _(pixels: Tensor, table: Tensor, height: int, width: int) -> Tensor:
    return pixels.new_empty((table.shape[0], 3, height, width), dtype=torch.float32)


def normalise(pixels: Tensor) -> Tensor:
    """RGB uint8 ``(..., 3, H, W)`` to float32 of ImageNet's zero mean and unit deviation."""
    mean, std = _statistics(pixels.device)
    return (pixels.float() - mean) / std


@lru_cache(maxsize=64)
def _statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    mean, std = torch.tensor([PIXEL_MEAN, PIXEL_STD], device=device)[..., None, None]
    return mean, std
