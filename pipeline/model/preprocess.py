"""From decoded images to the backbone's input, by way of one buffer that crosses to the device in one copy.

B images of a batch, H W padded input size; sizes are ``(H, W)``. The buffer holds, each part after the other::

    table   int64    (B, 5)  where each image's pixels begin, its h and w, and the h and w that it is resized to
    sizes   float32  (B, 2)  (h, w) in the input
    factors float32  (B, 2)  (x, y) from the original image to the input
    pixels  uint8            the images end to end, each RGB (h, w, 3)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.images.sizes import input_size, scaled_size
from pipeline.model.kernels.resize import resize_normalise
from pipeline.model.settings import TestSettings

_HEAD_BYTES = 5 * 8 + 2 * 4 + 2 * 4  # of an image: its rows of table, sizes and factors
# A kernel is compiled anew for pointers that 16 does not divide; and lines of a GPU's cache are of 128 bytes.
_PIXELS_ALIGNED, _IMAGE_ALIGNED = 128, 16


class Inputs(NamedTuple):
    """What a detector is given of a batch.

    Attributes:
        images: float32 ``(B, 3, H, W)``, normalised, zero-padded right and below.
        image_sizes: float32 ``(B, 2)``, ``(h, w)`` of each image in the input before padding.
        scale_factors: float32 ``(B, 2)``, (x, y) factors from original image to input pixels.
    """

    images: Tensor
    image_sizes: Tensor
    scale_factors: Tensor


def input_shape(image_size: tuple[int, int], settings: TestSettings) -> tuple[int, int]:
    """The padded ``(H, W)`` at which an image of this ``(H, W)`` enters the backbone."""
    return input_size(image_size, settings.short_side, settings.long_side)


def packed_size(images: Sequence[np.ndarray]) -> int:
    """Bytes of the buffer for these images."""
    *_, end = _pixel_offsets(images)
    return _pixels_at(len(images)) + end


def pack(
    images: Sequence[np.ndarray], originals: Sequence[tuple[int, int]], settings: TestSettings, buffer: np.ndarray
) -> None:
    """Lay images into a buffer, each copied once.

    Args:
        images: B arrays RGB uint8 ``(h, w, 3)``, of any memory layout.
        originals: their original sizes; an image may have been brought to `scaled_size` of it before.
        settings: short and long side.
        buffer: uint8 ``(packed_size(images),)``, written.
    """
    table, sizes, factors, pixels = _parts(len(images), buffer, np.dtype(np.int64), np.dtype(np.float32))
    for i, (image, start) in enumerate(zip(images, _pixel_offsets(images), strict=False)):
        size = scaled_size(originals[i], settings.short_side, settings.long_side)
        table[i] = (start, *image.shape[:2], *size)
        sizes[i] = size
        factors[i] = size[1] / originals[i][1], size[0] / originals[i][0]
        pixels[start : start + image.size].reshape(image.shape)[...] = image


def preprocess(buffer: Tensor, count: int, shape: tuple[int, int]) -> Inputs:
    """Keep-ratio resize, normalise and zero-pad what was packed, where the buffer lies.

    Args:
        buffer: uint8, what `pack` wrote.
        count: B.
        shape: the padded ``(H, W)`` of all the images.
    """
    table, sizes, factors, pixels = _parts(count, buffer, torch.int64, torch.float32)
    return Inputs(resize_normalise(pixels, table, *shape), sizes, factors)


def _parts(count: int, buffer: Any, int64: Any, float32: Any) -> tuple[Any, Any, Any, Any]:
    """Views of the buffer, an array or a tensor: table, sizes, factors, pixels."""
    head = buffer[: count * _HEAD_BYTES]
    table, sizes, factors = head[: 40 * count], head[40 * count : 48 * count], head[48 * count :]
    return (
        table.view(int64).reshape(count, 5),
        sizes.view(float32).reshape(count, 2),
        factors.view(float32).reshape(count, 2),
        buffer[_pixels_at(count) :],
    )


def _pixels_at(count: int) -> int:
    return _aligned(count * _HEAD_BYTES, _PIXELS_ALIGNED)


def _pixel_offsets(images: Sequence[np.ndarray]) -> Iterator[int]:
    """Where each image begins among the pixels, and where the last one ends."""
    start = 0
    for image in images:
        yield start
        start = _aligned(start + image.size, _IMAGE_ALIGNED)
    yield start


def _aligned(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment
