from __future__ import annotations

from fractions import Fraction

import numpy as np
import torch
from torch.nn import functional

from pipeline.masks.sampling import bilinear_samples, fused_multiply_add, sample_positions
from tests.masks.mask_cases import needs_fma


def rounded_to_float32(exact: Fraction) -> np.float32:
    """Nearest float32, ties to even, without going through float64's rounding."""
    near = np.float32(float(exact))
    candidates = [np.nextafter(near, np.float32(-np.inf)), near, np.nextafter(near, np.float32(np.inf))]
    return min(candidates, key=lambda c: (abs(Fraction(float(c)) - exact), int(c.view(np.int32)) & 1))


def test_fma_rounds_once():
    # The exact sum lies 2^-70 under a tie of float32, where float64 already rounds to the tie.
    a, b, c = np.float32((1 + 2**-23) * 2**-24), np.float32(1 - 2**-23), np.float32(1 + 2**-23)
    assert np.float32(np.float64(a) * np.float64(b) + np.float64(c)) == np.float32(1 + 2**-22)
    assert fused_multiply_add(a[None], b[None], c[None])[0] == np.float32(1 + 2**-23)


def test_fma_equals_exact_arithmetic():
    rng = np.random.default_rng(0)
    # Short mantissas and far exponents bring ties and near-ties about.
    scale = 2.0 ** rng.integers(-40, 3, (3, 4000))
    a, b, c = (rng.integers(-(2**24), 2**24, (3, 4000)) * 2.0**-24 * scale).astype(np.float32)
    c[::2] = (1 + rng.integers(0, 8, 2000) * 2.0**-23).astype(np.float32)
    exact = [Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z)) for x, y, z in zip(a, b, c, strict=True)]
    assert fused_multiply_add(a, b, c).tolist() == [rounded_to_float32(value) for value in exact]


@needs_fma
def test_samples_equal_torch_bit_for_bit():
    rng = np.random.default_rng(1)
    side, height, width = 28, 70, 90
    mask = rng.random((side, side), np.float32)
    box = np.array([7.3, 5.9, 61.2, 66.6], np.float32)
    low, size = box[:2], box[2:] - box[:2]
    centres = [torch.arange(n) + 0.5 for n in (width, height)]
    x, y = ((c - low[n]) / size[n] * 2 - 1 for n, c in enumerate(centres))
    grid = torch.stack([x.expand(height, width), y[:, None].expand(height, width)], dim=2)
    expected = functional.grid_sample(torch.from_numpy(mask)[None, None], grid[None], align_corners=False)[0, 0]

    rows, columns = (index.reshape(-1) for index in np.indices((height, width)))
    values = np.pad(mask, 1)[None]
    at_x = sample_positions(columns, np.full(rows.size, low[0]), np.full(rows.size, size[0]), side)
    at_y = sample_positions(rows, np.full(rows.size, low[1]), np.full(rows.size, size[1]), side)
    got = bilinear_samples(values, np.zeros(rows.size, np.int64), at_x, at_y)
    assert (got.reshape(height, width) == expected.numpy()).all()
