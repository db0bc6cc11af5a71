"""Rows of the annotate job's output as detections on images."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.coco.errors import InputError
from pipeline.coco.segmentations import mask_area
from pipeline.evaluate.inputs.ground_truth import Categories
from pipeline.masks.rle import Rle
from pipeline.metrics.blocks import DetectionBlock
from pipeline.tables.arrays import Bools, Float64s, Int64s
from pipeline.tables.examples import NUM_EXAMPLES, Examples
from pipeline.tables.ragged import offsets_of, owners_of, positions_in

_EXACT_FLOAT32 = float(1 << 24)  # from here on whole numbers are rounded


@dataclass(frozen=True)
class OutputBatch:
    """See ``predictions.DetectionBatch``.

    Attributes:
        place: the file, for messages.
        image_ids: [R] of the rows.
        detections: [R] lists of structs, as ``pipeline.annotations.schema`` has them; without the columns of masks
            where these are not needed, always without the categories' names.
    """

    place: str
    image_ids: pa.Array
    detections: pa.ListArray

    def block(self, rows: Int64s, image_sizes: Int64s, categories: Categories, masks: bool) -> DetectionBlock:
        """See `DetectionBatch`. Numbers become float64 without loss; their order stays."""
        lists = self.detections
        if not np.array_equal(rows, np.arange(len(lists))):
            lists = lists.take(pa.array(rows))
        lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
        flat, owners, positions = lists.flatten(), owners_of(lengths), positions_in(lengths)
        labels = categories.positions(self._column(flat, "category_id").to_numpy())
        kept = np.flatnonzero(labels >= 0)
        if len(kept) < len(labels):
            flat, owners = flat.take(pa.array(kept)), owners[kept]
        boxes = self._column(flat, "bbox").flatten().to_numpy().astype(np.float64).reshape(-1, 4)
        scores = self._column(flat, "score").to_numpy().astype(np.float64)
        self._check_finite(np.isfinite(scores) & np.isfinite(boxes).all(axis=1), rows[owners])
        areas, rles = self._masks(flat, rows, owners, image_sizes) if masks else (None, None)
        return DetectionBlock(
            offsets=offsets_of(np.bincount(owners, minlength=len(rows))),
            positions=positions[kept],
            categories=labels[kept],
            boxes=boxes,
            scores=scores,
            mask_areas=areas,
            rles=rles,
        )

    def _masks(
        self, flat: pa.StructArray, rows: Int64s, owners: Int64s, image_sizes: Int64s
    ) -> tuple[Float64s, list[Rle]]:
        segmentation = self._column(flat, "segmentation")
        sizes = self._column(segmentation, "size").flatten().to_numpy().reshape(-1, 2)
        wrong = np.unique(owners[(sizes != image_sizes[owners]).any(axis=1)])
        if len(wrong):
            first = [int(np.flatnonzero(owners == image)[0]) for image in wrong[:NUM_EXAMPLES]]
            images = [(self._name(rows[owners[i]]), _by(sizes[i]), _by(image_sizes[owners[i]])) for i in first]
            texts = (f"{name} ({found}, not {size})" for name, found, size in images)
            raise InputError(
                f"{self.place}: masks of {len(wrong):,} images have another size (height x width) than the image: "
                f"{Examples.of(texts, len(wrong))}"
            )
        shared = image_sizes.tolist()
        counts = _contents(self._column(segmentation, "counts"))
        rles: list[Rle] = [
            {"size": shared[row], "counts": text} for row, text in zip(owners.tolist(), counts, strict=True)
        ]
        areas = self._column(flat, "area").to_numpy().astype(np.float64)
        for index in np.flatnonzero(~(areas < _EXACT_FLOAT32)).tolist():
            areas[index] = mask_area(rles[index])
        return areas, rles

    def _column(self, flat: pa.StructArray, name: str) -> pa.Array:
        column = flat.field(name)
        if column.null_count:
            raise InputError(f"{self.place}: {column.null_count:,} detections have no {name}; the file is damaged")
        return column

    def _check_finite(self, finite: Bools, rows: Int64s) -> None:
        wrong = np.unique(rows[~finite])
        if len(wrong):
            names = Examples.of((self._name(row) for row in wrong[:NUM_EXAMPLES]), len(wrong))
            raise InputError(
                f"{self.place}: {len(wrong):,} images have detections with a score or a box that is no finite number: "
                f"{names}; annotate them anew"
            )

    def _name(self, row: int) -> str:
        return f"image {self.image_ids[int(row)].as_py()!r}"


def _by(size: NDArray[np.integer]) -> str:
    return " x ".join(map(str, size.tolist()))


def _contents(texts: pa.StringArray) -> list[bytes]:
    """The bytes of each string: several times as fast as ``to_pylist``."""
    _, offsets_buffer, data = texts.buffers()
    if not len(texts):
        return []
    offsets = np.frombuffer(offsets_buffer, np.int32)[texts.offset : texts.offset + len(texts) + 1]
    raw = data.slice(int(offsets[0]), int(offsets[-1] - offsets[0])).to_pybytes()
    bounds = (offsets - offsets[0]).tolist()
    return [raw[start:stop] for start, stop in pairwise(bounds)]
