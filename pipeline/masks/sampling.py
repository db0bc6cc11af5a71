"""Bilinear samples of a mask in the very float32 operations of the reference, for the pixels where rounding decides.

The reference is mmdet's paste on a CPU: its chain of float32 operations from pixel to the -1 .. 1 frame, then
``torch.nn.functional.grid_sample`` as its AVX2 and AVX-512 kernels compute it, fused multiply-adds included.

Legend: N masks; M mask side; L = M + 2 lines of a mask inside a border of zeros; Q pixels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float32Array = NDArray[np.float32]
Int64Array = NDArray[np.int64]


def sample_positions(pixel: Int64Array, low: Float32Array, size: Float32Array, side: int) -> Float32Array:
    """Where a pixel's centre falls on a mask, along one axis.

    Args:
        pixel: [Q] column or row of the image.
        low: [Q] start of the box on that axis.
        size: [Q] end minus start, rounded to float32.
        side: M, values of the mask along the axis.

    Returns:
        [Q] float32 in mask lines: 0 at the centre of the mask's first value.
    """
    centre = pixel.astype(np.float32) + np.float32(0.5)
    unit = (centre - low) / size * np.float32(2) - np.float32(1)
    # One fused multiply-add in torch; float64 holds every bit of it.
    return ((unit + np.float32(1)).astype(np.float64) * (side / 2) - 0.5).astype(np.float32)


def bilinear_samples(values: Float32Array, mask: Int64Array, x: Float32Array, y: Float32Array) -> Float32Array:
    """Values of masks at positions between their lines.

    Args:
        values: [N, L, L], the border of zeros included.
        mask: [Q] which of the N.
        x: [Q] position in mask lines; outside -1 .. M all is zero.
        y: [Q] likewise, along the other axis.

    Returns:
        [Q] float32.
    """
    lines = values.shape[1]
    x, y = np.clip(x, -1, lines - 2), np.clip(y, -1, lines - 2)
    west, north = np.minimum(np.floor(x), lines - 3), np.minimum(np.floor(y), lines - 3)
    from_west, from_north = x - west, y - north
    to_east, to_south = np.float32(1) - from_west, np.float32(1) - from_north
    corner = (mask * lines + north.astype(np.int64) + 1) * lines + west.astype(np.int64) + 1
    flat = values.reshape(-1)
    sample = flat[corner] * (to_south * to_east)
    sample = fused_multiply_add(flat[corner + 1], to_south * from_west, sample)
    sample = fused_multiply_add(flat[corner + lines], from_north * to_east, sample)
    return fused_multiply_add(flat[corner + lines + 1], from_north * from_west, sample)


def fused_multiply_add(a: Float32Array, b: Float32Array, c: Float32Array) -> Float32Array:
    """a * b + c rounded once to float32.

    float64 holds the product; its sum is rounded to odd, after which rounding to float32 gives what rounding once
    would (Boldo and Melquiond, "Emulation of a FMA and Correctly Rounded Sums", 2008).
    """
    product = a.astype(np.float64) * b
    total = product + c
    kept = total - product
    lost = (product - (total - kept)) + (c - kept)
    is_even = total.view(np.int64) & 1 == 0
    odd = np.nextafter(total, np.copysign(np.inf, lost))
    return np.where((lost != 0) & is_even, odd, total).astype(np.float32)
