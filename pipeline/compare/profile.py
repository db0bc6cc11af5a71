"""What is counted on one side: numbers and histograms, and the same for resampled images.

For intervals the images are drawn again, many times (Poisson bootstrap: each image comes in as often as a Poisson
variable of mean 1 says, so that a stream needs to be passed but once). How often is a function of the image's id: on
both sides the same images come in, so what both have in common cancels out, and two equal sides differ by nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.annotations.schema import ANNOTATED, FAILED
from pipeline.tables.arrow_types import in_one_piece
from pipeline.tables.ids import hash_ids, wide

# What of a row is looked at.
COLUMNS = (
    "image_id",
    "status",
    "error_code",
    "height",
    "width",
    "detections.list.element.score",
    "detections.list.element.category_id",
    "detections.list.element.area",
)
SCORE_EDGES = np.linspace(0, 1, 21)
# Of the mask's area as a share of the image's: halvings, from all of it down.
AREA_EDGES = np.array([0.0, *(2.0 ** -np.arange(14, -1, -1))])
OBJECT_EDGES = np.array([*range(11), 15, 20, 30, 50, 100, np.inf])
SIDE_EDGES = np.array([0.0, *(2.0 ** np.arange(5, 14)), np.inf])  # root of the pixels

REPLICATES = 200
_CELLS = 40_000_000  # of all histograms of a side: 160 MB
_ODD = np.uint64(0x9E3779B97F4A7C15)

Int64Array = NDArray[np.int64]
Floats = NDArray[np.float64]


def replicates_of(num_classes: int, num_slices: int = 1) -> int:
    """How many times the images are drawn again, within the memory that there is for it."""
    cells = num_slices * (max(1, num_classes) * (len(SCORE_EDGES) + len(AREA_EDGES)) + 64)
    return int(max(20, min(REPLICATES, _CELLS // cells)))


def poisson_weights(ids: pa.Array, replicates: int) -> NDArray[np.uint8]:
    """How often each image comes in.

    Args:
        ids: [N] of the images.
        replicates: how many times they are drawn.

    Returns:
        [replicates, N]; the same id has the same weights everywhere.
    """
    salts = _ODD * np.arange(1, replicates + 1, dtype=np.uint64)
    mixed = hash_ids(wide(ids))[None, :] ^ salts[:, None]
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # the finaliser of splitmix64
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    uniform = (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53
    # 1/e, and what more of the distribution function there is below a double's last bit.
    steps = np.exp(-1.0) * np.cumsum(1.0 / np.cumprod([1.0, *range(1, 12)]))
    found: NDArray[np.uint8] = np.searchsorted(steps, uniform).astype(np.uint8)
    return found


@dataclass
class Profile:
    """Counts of one side, or of a slice of it. The first of R + 1 rows is the images as they are, R are drawn again.

    Attributes:
        classes: K category ids, in the order of the columns.
        images: [R + 1] annotated images.
        failed: [R + 1] failed ones.
        with_class: [R + 1, K] images with a detection of the class.
        scores: [R + 1, K, bins] detections by `SCORE_EDGES`.
        areas: [R + 1, K, bins] detections by `AREA_EDGES`.
        objects: [R + 1, bins] images by `OBJECT_EDGES`.
        sides: [R + 1, bins] images by `SIDE_EDGES`.
        failures: failed images by code.
    """

    classes: tuple[int, ...]
    replicates: int
    failures: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        rows, num = self.replicates + 1, len(self.classes)
        self.images, self.failed = np.zeros(rows), np.zeros(rows)
        self.with_class = np.zeros((rows, num))
        # Not float32, which counts no further than 16.7 million.
        self.scores = np.zeros((rows, num, len(SCORE_EDGES) - 1), np.uint32)
        self.areas = np.zeros((rows, num, len(AREA_EDGES) - 1), np.uint32)
        self.objects = np.zeros((rows, len(OBJECT_EDGES) - 1))
        self.sides = np.zeros((rows, len(SIDE_EDGES) - 1))
        self._ids = np.array(sorted(self.classes), np.int64)
        self._places = np.argsort(np.array(self.classes, np.int64))

    def add(self, rows: pa.Table) -> None:
        """Count some rows of `COLUMNS`, of which none is marked as deleted."""
        rows = rows.combine_chunks()
        if not rows.num_rows:
            return
        drawn = poisson_weights(in_one_piece(rows["image_id"]), self.replicates)
        weights = np.concatenate([np.ones((1, rows.num_rows), np.uint8), drawn]).astype(np.float64)
        annotated = pc.equal(rows["status"], ANNOTATED).to_numpy()
        failed = pc.equal(rows["status"], FAILED).to_numpy()
        self.images += weights[:, annotated].sum(axis=1)
        self.failed += weights[:, failed].sum(axis=1)
        self.failures.update(rows["error_code"].drop_null().to_pylist())
        self._add_annotated(rows.filter(pa.array(annotated)), weights[:, annotated])

    def _add_annotated(self, rows: pa.Table, weights: Floats) -> None:
        lists = in_one_piece(rows["detections"])
        counts = pc.list_value_length(lists).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
        pixels = (_floats(rows["height"]) * _floats(rows["width"])).clip(1)
        self._count(self.objects, np.digitize(counts, OBJECT_EDGES) - 1, np.arange(len(counts)), weights)
        self._count(self.sides, np.digitize(np.sqrt(pixels), SIDE_EDGES) - 1, np.arange(len(counts)), weights)
        found = lists.flatten()
        if not len(found):
            return
        image = np.repeat(np.arange(len(counts)), counts)
        ids = found.field("category_id").to_numpy(zero_copy_only=False)
        label = self._places[np.searchsorted(self._ids, ids)]
        scores = found.field("score").to_numpy(zero_copy_only=False)
        shares = found.field("area").to_numpy(zero_copy_only=False) / pixels[image]
        for histogram, values, edges in ((self.scores, scores, SCORE_EDGES), (self.areas, shares, AREA_EDGES)):
            bins = len(edges) - 1
            at = np.clip(np.digitize(values, edges) - 1, 0, bins - 1)
            self._count(histogram.reshape(len(histogram), -1), label * bins + at, image, weights)
        pairs = np.unique(image * len(self.classes) + label)
        self._count(self.with_class, pairs % len(self.classes), pairs // len(self.classes), weights)

    @staticmethod
    def _count(histogram: NDArray[Any], cells: Int64Array, image: Int64Array, weights: Floats) -> None:
        """Add the weight of each thing's image to its cell, in every row."""
        used, at = np.unique(cells, return_inverse=True)
        for row, of_image in zip(histogram, weights, strict=True):
            row[used] += np.bincount(at, of_image[image], len(used)).astype(row.dtype)


def categories_of(sides: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """All ids that occur."""
    return tuple(sorted({each for side in sides for each in side}))


def _floats(values: pa.ChunkedArray) -> Floats:
    found: Floats = values.fill_null(0).to_numpy().astype(np.float64)
    return found
