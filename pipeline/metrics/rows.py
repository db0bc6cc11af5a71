"""Rows of an output of the annotate job as blocks of detections, checked."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.annotations.schema import mask_column
from pipeline.coco.errors import InputError
from pipeline.masks.rle import DamagedRle, RleColumn
from pipeline.messages.examples import NUM_EXAMPLES, Examples
from pipeline.metrics.blocks import Categories, DetectionBlock
from pipeline.tables.arrays import Bools, Int64s
from pipeline.tables.arrow_types import taken
from pipeline.tables.ragged import offsets_of, owners_of, positions_in


@dataclass(frozen=True)
class OutputBatch:
    """Some rows of an output, R in all.

    Attributes:
        place: the file or the output, for messages.
        image_ids: [R] of the rows.
        detections: [R] lists of structs, as ``pipeline.annotations.schema`` has them; without the columns of masks
            where these are not needed.
    """

    place: str
    image_ids: pa.Array
    detections: pa.ListArray

    def block(self, rows: Int64s, image_sizes: Int64s, categories: Categories, masks: bool) -> DetectionBlock:
        """The detections on chosen images. Numbers become float64 without loss; their order stays.

        Args:
            rows: [N] of the images, in the order of the block.
            image_sizes: [N, 2] their height, width in pixels.
            categories: those of others are left out.
            masks: whether masks are needed.

        Raises:
            InputError: a number that is missing or not finite, or a mask that is damaged or not of its image's size.
        """
        lists = taken(self.detections, rows)
        lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
        flat, owners, positions = lists.flatten(), owners_of(lengths), positions_in(lengths)
        labels = categories.positions(self._column(flat, "category_id").to_numpy())
        kept = np.flatnonzero(labels >= 0)
        if len(kept) < len(labels):
            flat, owners = flat.take(pa.array(kept)), owners[kept]
        boxes = self._column(flat, "bbox").flatten().to_numpy().astype(np.float64).reshape(-1, 4)
        scores = self._column(flat, "score").to_numpy().astype(np.float64)
        self._check_finite(np.isfinite(scores) & np.isfinite(boxes).all(axis=1), rows[owners])
        rles = self._masks(flat, rows, owners, image_sizes) if masks else None
        return DetectionBlock(
            offsets=offsets_of(np.bincount(owners, minlength=len(rows))),
            positions=positions[kept],
            categories=labels[kept],
            boxes=boxes,
            scores=scores,
            rles=rles,
        )

    def _masks(self, flat: pa.StructArray, rows: Int64s, owners: Int64s, image_sizes: Int64s) -> RleColumn:
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
        try:
            return mask_column(segmentation, image_sizes[owners])
        except DamagedRle as error:
            name = self._name(rows[owners[error.index]])
            raise InputError(f"{self.place}: the mask of a detection on {name} is damaged: {error}") from None

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
