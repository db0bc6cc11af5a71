"""Binary masks -> polygons along the edges of the pixels, and how much of the masks these keep.

Polygon formats hold rings of points; COCO's a ring for each part, YOLO's a single one, and neither knows holes. So the
rings of a mask (its parts and its holes) are joined by bridges of zero width, forth and back between the nearest
corners, as ultralytics joins the parts of a COCO object. Holes run the other way round than parts, so that both fill
rules, even-odd and non-zero, give the mask.

The polygon runs along pixel edges, not through pixel centres: its bounding box and area are those of the mask, and a
mask of one pixel is a square and not a point. Marching squares (contourpy, scikit-image) would cut the corners.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

Ring = NDArray[np.int64]

LOSS_SAMPLE = 500


class PolygonLoss:
    """How much of the first masks their polygons keep: IoU by pycocotools' fill rule."""

    def __init__(self) -> None:
        self.ious: list[float] = []

    @property
    def wants_more(self) -> bool:
        """Whether the sample is not yet full."""
        return len(self.ious) < LOSS_SAMPLE

    def add(self, polygons: Sequence[list[float]], counts: str, image_size: tuple[int, int]) -> None:
        """Compare polygons as they were written, x, y, x, y, ... in pixels, with their mask."""
        if self.wants_more:
            height, width = image_size
            read = coco_mask.merge(coco_mask.frPyObjects(list(polygons), height, width))
            mask = {"size": [height, width], "counts": counts.encode()}
            self.ious.append(float(coco_mask.iou([read], [mask], [0])[0, 0]))

    def __str__(self) -> str:
        if not self.ious:
            return "IoU of polygons and masks: no masks"
        return (
            f"IoU of polygons and masks, first {len(self.ious)}: mean {np.mean(self.ious):.6f}, "
            f"least {min(self.ious):.6f}"
        )


def outline(pixels: NDArray[np.bool_]) -> Ring:
    """One closed polygon around all set pixels.

    Args:
        pixels: [H, W] bool, at least one set.

    Returns:
        [V, 2] x, y of the corners, in pixels; pixel (row 0, column 0) is the square from (0, 0) to (1, 1). The first
        corner is not repeated at the end.
    """
    return _joined(rings(pixels))


def outlines(pixels: NDArray[np.bool_]) -> list[Ring]:
    """One closed polygon around each part, with its holes joined to it; as `outline`, which joins the parts too."""
    found = rings(pixels)
    areas = [_signed_area(ring) for ring in found]
    parts = [[ring] for ring, area in zip(found, areas, strict=True) if area > 0]
    for hole in (ring for ring, area in zip(found, areas, strict=True) if area < 0):
        around = [part for part in parts if _holds(part[0], hole)]
        min(around, key=lambda part: _signed_area(part[0])).append(hole)
    return [_joined(part) for part in parts]


def _joined(some: Sequence[Ring]) -> Ring:
    path, *others = some
    for ring in others:
        path = _bridged(path, ring)
    return path


def _signed_area(ring: Ring) -> int:
    """Pixels inside; negative for a hole."""
    x, y = ring.T
    return int((x * np.roll(y, -1) - np.roll(x, -1) * y).sum()) // 2


def _holds(part: Ring, hole: Ring) -> bool:
    """Whether the pixel above a hole's first edge, which belongs to the part that the hole is in, is inside a ring."""
    x, y = hole[np.lexsort((hole[:, 0], hole[:, 1]))[0]]
    starts, ends = part, np.roll(part, -1, axis=0)
    is_left = (starts[:, 0] == ends[:, 0]) & (starts[:, 0] <= x)
    crosses = np.minimum(starts[:, 1], ends[:, 1]) < y
    crosses &= np.maximum(starts[:, 1], ends[:, 1]) >= y
    return bool((is_left & crosses).sum() % 2)


def rings(pixels: NDArray[np.bool_]) -> list[Ring]:
    """The boundaries between set and unset pixels: parts clockwise (y points down), holes the other way round.

    Pixels that touch at a corner only belong to different parts.

    Args:
        pixels: [H, W] bool, a mask or a part of one.

    Returns:
        Corners [V, 2] x, y of each ring; no three successive ones on a line.
    """
    padded = np.pad(pixels, 1)
    nw, ne, sw, se = padded[:-1, :-1], padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    saddle = (nw == se) & (ne == sw) & (nw != ne)  # two corners at one place
    corners = (nw ^ ne ^ sw ^ se) + 2 * saddle.astype(np.int8)
    y, x = np.nonzero(corners)
    copies = corners[y, x]
    y, x = np.repeat(y, copies), np.repeat(x, copies)
    below = _partners_in_columns(x, y, nw)
    points = np.stack([x, y], axis=1)
    return [points[loop] if se[y[loop[0]], x[loop[0]]] else points[loop[::-1]] for loop in _loops(below.tolist())]


def _partners_in_columns(x: NDArray[np.int64], y: NDArray[np.int64], nw: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Which corner is at the other end of each corner's vertical edge.

    Along a column of corners the edges are between the first and second, third and fourth, ...; in a row as well,
    where the corners stand in order already. Of two corners at one place the first ends the edge from the left: it
    ends the one from above too if the pixel between these two is set, else it starts the one downwards.
    """
    second = np.append(False, (x[1:] == x[:-1]) & (y[1:] == y[:-1]))
    double = second | np.append(second[1:], False)
    order = np.lexsort((np.where(double, second == nw[y, x], False), y, x))
    partners = np.empty(x.size, np.int64)
    partners[order[0::2]], partners[order[1::2]] = order[1::2], order[0::2]
    return partners


def _loops(below: list[int]) -> list[list[int]]:
    """Follow horizontal and vertical edges in turn. Each loop starts with its topmost edge, from left to right."""
    seen = bytearray(len(below))
    loops = []
    for start in range(0, len(below), 2):
        if seen[start]:
            continue
        loop, corner = [], start
        while not seen[corner]:
            seen[corner] = seen[corner ^ 1] = 1
            loop += [corner, corner ^ 1]
            corner = below[corner ^ 1]
        loops.append(loop)
    return loops


def _bridged(path: Ring, ring: Ring) -> Ring:
    """The path with a detour from its corner nearest to the ring, around that, and back."""
    distances = ((path[:, None] - ring[None]) ** 2).sum(axis=2)
    leave, arrive = np.unravel_index(np.argmin(distances), distances.shape)
    detour = np.roll(ring, -arrive, axis=0)
    return np.concatenate([path[: leave + 1], detour, detour[:1], path[leave:]])
