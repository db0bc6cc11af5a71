"""The size that a picture is brought to, and the one it is padded to. Sizes are ``(H, W)``. No torch."""

from __future__ import annotations

import math


def scaled_size(image_size: tuple[int, int], short_side: int, long_side: int) -> tuple[int, int]:
    """The size that fits ``(short_side, long_side)`` and keeps the aspect ratio, as mmcv's ``rescale_size``.

    Args:
        image_size: ``(H, W)`` of the image.
        short_side: wanted length of the shorter side, in pixels.
        long_side: upper limit of the longer side, in pixels.

    Returns:
        ``(H, W)`` with ``int(side * scale + 0.5)``, at least 1 (mmcv asks OpenCV for 0 pixels there).
    """
    h, w = image_size
    scale = min(long_side / max(h, w), short_side / min(h, w))
    return max(1, int(h * scale + 0.5)), max(1, int(w * scale + 0.5))


def padded_size(image_size: tuple[int, int], divisor: int = 32) -> tuple[int, int]:
    """``(H, W)`` rounded up to a multiple of ``divisor``."""
    h, w = image_size
    return math.ceil(h / divisor) * divisor, math.ceil(w / divisor) * divisor


def input_size(image_size: tuple[int, int], short_side: int, long_side: int) -> tuple[int, int]:
    """The padded ``(H, W)`` at which an image of this ``(H, W)`` enters the model; the arguments of `scaled_size`."""
    return padded_size(scaled_size(image_size, short_side, long_side))
