"""Random masks and boxes of every awkward kind, and what is expected of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from pipeline.masks.rle import Rle
from testing.mask_reference import reference_full_canvas

Float32Array = NDArray[np.float32]

needs_fma = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() == "DEFAULT",
    reason="this CPU's torch kernels round without fused multiply-adds: about 1 mask in 10,000 differs by a pixel",
)


def _blob(rng: np.random.Generator, side: int) -> NDArray[np.float64]:
    y, x = np.mgrid[:side, :side] / side * 2 - 1
    distance = np.hypot(y - rng.uniform(-0.5, 0.5), x - rng.uniform(-0.5, 0.5))
    logits = (rng.uniform(0.2, 1.5) - distance + rng.normal(0, 0.05, (side, side))) * rng.uniform(2, 40)
    return 1 / (1 + np.exp(-logits))


def _ulps_around_half(rng: np.random.Generator, side: int) -> NDArray[np.float64]:
    return 0.5 + rng.integers(-4, 5, (side, side)) * 2.0**-25


def _ramp(rng: np.random.Generator, side: int) -> NDArray[np.float64]:
    """A plane that passes through exactly 0.5 along whole lines."""
    y, x = np.mgrid[:side, :side]
    return np.clip(0.5 + (x * rng.integers(-2, 3) + y * rng.integers(-2, 3) - rng.integers(-side, side)) / 64, 0, 1)


def _spikes(rng: np.random.Generator, side: int) -> NDArray[np.float64]:
    return (rng.random((side, side)) < 0.05).astype(float)


def _few_levels(rng: np.random.Generator, side: int) -> NDArray[np.float64]:
    return rng.choice([0.0, 0.25, 0.5, 0.75, 1.0, np.nextafter(np.float32(0.5), np.float32(0)), 1e-40], (side, side))


MASK_KINDS: dict[str, Callable[[np.random.Generator, int], NDArray[np.float64]]] = {
    "blob": _blob,
    "noise": lambda rng, side: rng.random((side, side)),
    "binary": lambda rng, side: rng.integers(0, 2, (side, side)).astype(float),
    "checkerboard": lambda rng, side: np.indices((side, side)).sum(0) % 2 * 1.0,
    "constant": lambda rng, side: np.full((side, side), rng.choice([0, 1, 0.5, 0.5 - 2**-25, 0.5 + 2**-24, 0.7])),
    "ulps around 0.5": _ulps_around_half,
    "ramp": _ramp,
    "spikes": _spikes,
    "few levels": _few_levels,
    "beyond 0..1": lambda rng, side: rng.normal(0.5, 10 ** rng.uniform(0, 6), (side, side)),
}


def _span(rng: np.random.Generator, length: int, side: int) -> tuple[float, float]:
    """Start and end of a box along one axis of the image."""
    kind = rng.integers(0, 14)
    start = rng.uniform(-0.3, 1.1) * length
    size = rng.uniform(0, 1) ** 2 * length * 1.5
    match kind:
        case 0:  # on pixel edges
            return float(round(start)), float(round(start) + rng.integers(1, 2 * length + 2))
        case 1:  # on pixel centres
            return round(start) + 0.5, round(start) + 0.5 + rng.integers(1, length + 2)
        case 2:  # sub-pixel
            return start, start + rng.uniform(0, 1.5)
        case 3:  # sliver of a few ulps
            low = np.float32(rng.integers(0, length + 1) + rng.choice([0.0, 0.5]))
            return float(low), float(low + np.spacing(low) * rng.integers(1, 4))
        case 4:  # the whole image
            return 0.0, float(length)
        case 5:  # more than the image
            return -rng.uniform(0, 20), length + rng.uniform(0, 20)
        case 6:  # huge
            return -(10 ** rng.uniform(2, 6.5)), length + 10 ** rng.uniform(0, 6.5)
        case 7:  # touches the far border
            return length - size, float(length)
        case 8:  # touches the near border
            return 0.0, size
        case 9:  # outside
            low = rng.choice([-size - rng.uniform(0, 3), length + rng.uniform(0, 3)])
            return low, low + size
        case 10:  # one pixel a mask line: every sample falls on one
            low = round(start) + float(rng.choice([0.0, 0.5, 0.25]))
            return low, low + side * float(rng.choice([0.5, 1, 2, 4]))
        case 11:  # without an inside
            return start, start - float(rng.choice([0.0, 0.0, rng.uniform(0, 10)]))
        case _:
            return start, start + size


def random_case(rng: np.random.Generator, num_masks: int, side: int, largest: int) -> tuple:
    """(masks, boxes, image_size) with a random kind for every mask and every axis of every box."""
    height, width = (int(n) for n in rng.integers(1, largest + 1, 2))
    kinds = rng.choice(list(MASK_KINDS), num_masks)
    masks = np.stack([MASK_KINDS[kind](rng, side) for kind in kinds]).astype(np.float32)
    x, y = ([_span(rng, length, side) for _ in range(num_masks)] for length in (width, height))
    boxes = np.array([(x0, y0, x1, y1) for (x0, x1), (y0, y1) in zip(x, y, strict=True)], np.float32)
    return masks, boxes, (height, width)


def expected_rles(masks: Float32Array, boxes: Float32Array, image_size: tuple[int, int]) -> list[Rle]:
    """The reference's RLEs; an empty mask for boxes without an inside, or so thin that its division overflows."""
    height, width = image_size
    empty = coco_mask.encode(np.zeros((height, width), np.uint8, order="F"))
    with np.errstate(all="ignore"):
        size = boxes[:, 2:] - boxes[:, :2]
    inside = ((size > 1e-30) & np.isfinite(size)).all(axis=1)
    pasted = iter(reference_full_canvas(masks[inside], boxes[inside], image_size))
    return [next(pasted) if ok else empty for ok in inside]
