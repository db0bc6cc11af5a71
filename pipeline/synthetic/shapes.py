"""The objects of rendered scenes: what a class is.

A shape is a signed distance field: negative inside, about the distance to the edge in pixels near it. Its arguments
are coordinates from the centre in pixels, and the radius of the circle about all of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Shape = Callable[[Floats, Floats, float], Floats]


def _ball(x: Floats, y: Floats, radius: float) -> Floats:
    return np.hypot(x, y) - np.float32(radius)


def _ring(x: Floats, y: Floats, radius: float) -> Floats:
    return np.abs(np.hypot(x, y) - np.float32(0.75 * radius)) - np.float32(0.25 * radius)


def _brick(x: Floats, y: Floats, radius: float) -> Floats:
    return np.maximum(np.abs(x) - 0.88 * radius, np.abs(y) - 0.46 * radius)


def _leaf(x: Floats, y: Floats, radius: float) -> Floats:
    """The common part of two discs: pointed at both ends."""
    offset = 0.75 * radius
    return np.hypot(np.abs(y) + offset, x) - np.float32(np.hypot(offset, radius))


def _star(x: Floats, y: Floats, radius: float) -> Floats:
    """Five points: in each half sector the side of the edge from a point to the notch beside it."""
    sector = np.float32(np.pi / 5)
    angle = np.abs(np.mod(np.arctan2(y, x) + sector, 2 * sector) - sector)
    distance = np.hypot(x, y)
    u, v = distance * np.cos(angle), distance * np.sin(angle)
    notch_u, notch_v = 0.45 * radius * np.cos(sector), 0.45 * radius * np.sin(sector)
    edge_u, edge_v = notch_u - radius, notch_v
    return (edge_u * v - edge_v * (u - radius)) / np.float32(-np.hypot(edge_u, edge_v))


CLASSES: dict[str, Shape] = {"ball": _ball, "brick": _brick, "star": _star, "leaf": _leaf, "ring": _ring}
_SHAPES = tuple(CLASSES.values())


@dataclass(frozen=True)
class Placed:
    """An object at its place: its distance field ``(h, w)`` on the part of the canvas that begins at top, left."""

    top: int
    left: int
    field: Floats
    x: Floats
    y: Floats
    radius: float

    @property
    def window(self) -> tuple[slice, slice]:
        height, width = self.field.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)

    def mask(self, size: tuple[int, int]) -> NDArray[np.bool_]:
        """All pixels of it, hidden or not, bool ``(H, W)``."""
        mask = np.zeros(size, np.bool_)
        mask[self.window] = self.field < 0
        return mask


def shape_at(label: int, centre: NDArray[np.float64], radius: float, turn: float, size: tuple[int, int]) -> Placed:
    margin = 1.6 * radius + 3
    top, left = (max(0, int(c - margin)) for c in centre)
    bottom, right = (min(extent, int(c + margin) + 1) for extent, c in zip(size, centre, strict=True))
    dy = (np.arange(top, bottom, dtype=np.float32) + np.float32(0.5 - centre[0]))[:, None]
    dx = (np.arange(left, right, dtype=np.float32) + np.float32(0.5 - centre[1]))[None]
    cos, sin = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    x, y = cos * dx + sin * dy, cos * dy - sin * dx
    return Placed(top, left, _SHAPES[label](x, y, radius).astype(np.float32), x, y, radius)
