"""Ground truth and detections of a block of images, side by side: what evaluation works on.

Both hold the same N images in the same order, and their objects one after the other: those of image ``i`` are
``offsets[i]`` to ``offsets[i + 1]``. Categories are positions in the list of ground truth categories in the order
of their ids. Boxes are x, y, width, height in pixels, as COCO has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.masks.rle import RleColumn
from pipeline.tables.arrays import Bools, Float64s, Int64s


@dataclass(frozen=True)
class Categories:
    """What is told apart, in the order of the ids, which is that of the axis ``K``.

    Attributes:
        ids: [K] of the categories, ascending.
        names: [K] of the categories, in the same order.
    """

    ids: tuple[int, ...]
    names: tuple[str, ...]

    def positions(self, ids: NDArray[np.integer]) -> Int64s:
        """[N] the position of each id, -1 where there is no such category."""
        known = np.array(self.ids, np.int64)
        at = np.minimum(np.searchsorted(known, ids), len(known) - 1)
        return np.where(known[at] == ids, at, -1)


@dataclass(frozen=True)
class TruthBlock:
    """The ground truth of N images, G objects in all.

    Attributes:
        image_ids: [N] as in the ground truth.
        orders: [N] position of each image among all images in the order of their ids, or any number that sorts
            the same: decides between equal scores.
        image_sizes: [N, 2] height, width in pixels.
        offsets: [N + 1] where the objects of each image begin, and the end of the last.
        ids: [G] of the annotations. pycocotools never counts a match with id 0, and neither does this package.
        categories: [G] positions among the categories.
        boxes: [G, 4] x, y, width, height.
        areas: [G] as annotated, in square pixels.
        crowd: [G] whether it is a crowd region.
        rles: G masks; ``None`` where only boxes are compared.
        file_names: [N] of the images; ``None`` where they are not known.
    """

    image_ids: Sequence[int] | Sequence[str]
    orders: Int64s
    image_sizes: Int64s
    offsets: Int64s
    ids: Int64s
    categories: Int64s
    boxes: Float64s
    areas: Float64s
    crowd: Bools
    rles: RleColumn | None
    file_names: Sequence[str | None] | None = None

    def __len__(self) -> int:
        """Number of images."""
        return len(self.offsets) - 1


@dataclass(frozen=True)
class DetectionBlock:
    """The detections on the same N images, D in all, in the order in which they were given.

    Attributes:
        offsets: [N + 1] where the detections of each image begin, and the end of the last.
        positions: [D] place of each in its image's list as it was given, before any was left out.
        categories: [D] positions among the categories.
        boxes: [D, 4] x, y, width, height.
        scores: [D] the higher, the surer.
        rles: D masks; ``None`` where only boxes are compared.
    """

    offsets: Int64s
    positions: Int64s
    categories: Int64s
    boxes: Float64s
    scores: Float64s
    rles: RleColumn | None

    def __len__(self) -> int:
        """Number of images."""
        return len(self.offsets) - 1
