"""Keep-ratio resize, bit-equal to OpenCV's ``INTER_LINEAR`` on uint8, on any device.

The published numbers of the model were measured on images resized by OpenCV's fixed-point bilinear
kernel. Float interpolation, PIL and antialiased resizing all differ from it (by up to 22 grey levels when
shrinking), so the kernel is reproduced here in integer arithmetic: the same bytes on a CPU and on a GPU.

Sizes are ``(H, W)``.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

# OpenCV's resize: 11-bit weights, horizontal products kept in int32, 4 + 16 bits dropped before the
# vertical sum and the last 2 with rounding after it (22 = 2 * 11 bits in all).
_WEIGHT_ONE = 2048


def resize_bilinear_uint8(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize like ``cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)``: no pixel differs.

    Args:
        image: uint8 ``(..., H, W)`` on any device.
        size: wanted ``(H, W)``, both positive.

    Returns:
        uint8 ``(..., *size)`` on the same device.
    """
    if image.dtype != torch.uint8:
        raise TypeError(f"expected a uint8 image, got {image.dtype}")
    src_h, src_w = image.shape[-2:]
    h, w = size
    if (src_h, src_w) == (h, w):
        return image.clone()
    pixels = image.to(torch.int32)
    left, right, w_left, w_right = _taps(src_w, w, True, image.device)
    top, bottom, w_top, w_bottom = _taps(src_h, h, False, image.device)
    rows = pixels.index_select(-1, left).mul_(w_left)
    rows += pixels.index_select(-1, right).mul_(w_right)
    rows >>= 4
    out = rows.index_select(-2, top).mul_(w_top[:, None])
    out >>= 16
    lower = rows.index_select(-2, bottom).mul_(w_bottom[:, None])
    lower >>= 16
    out += lower
    out += 2
    out >>= 2
    return out.clamp_(0, 255).to(torch.uint8)


@lru_cache(maxsize=256)
def _taps(n_src: int, n_dst: int, is_column: bool, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The two source indices and the two fixed-point weights of every output position along one axis."""
    scale = 1.0 / (n_dst / n_src)  # in this order: it is what OpenCV rounds
    position = ((torch.arange(n_dst, dtype=torch.float64) + 0.5) * scale - 0.5).to(torch.float32)
    first = position.floor()
    fraction = position - first
    index = first.to(torch.int64)
    if is_column:
        # Columns beyond the edge take the edge pixel alone; rows keep their weights on a clamped index.
        # The sums are equal, the two roundings are not.
        fraction[(index < 0) | (index >= n_src - 1)] = 0
    second_weight = torch.round(fraction * _WEIGHT_ONE).to(torch.int32)
    first_weight = torch.round((1 - fraction) * _WEIGHT_ONE).to(torch.int32)
    taps = (index.clamp(0, n_src - 1), (index + 1).clamp(0, n_src - 1), first_weight, second_weight)
    a, b, c, d = (t.to(device) for t in taps)
    return a, b, c, d
