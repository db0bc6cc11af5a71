"""Rows of an output drawn on their pictures."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.annotations.failure import ImageFailure
from pipeline.annotations.pictures import PictureSource
from pipeline.annotations.rows import Row
from pipeline.annotations.schema import ANNOTATED, SEGMENTATION, mask_column
from pipeline.drawing.draw import DrawOptions, Picture, draw
from pipeline.masks.rle import DamagedRle, Rle
from pipeline.model.categories import Category
from pipeline.storage.uris import UriText

_ROWS_AT_ONCE = 8  # fetched concurrently, and in memory together


@dataclass(frozen=True)
class DrawnRow:
    """What became of a row.

    Attributes:
        picture: RGB uint8 ``(H, W, 3)``; or why there is none.
        num_objects: what was drawn of its detections.
    """

    image_id: int | str
    picture: Picture | ImageFailure
    num_objects: int


def draw_rows(
    rows: Iterable[Row],
    source: PictureSource,
    options: DrawOptions | None = None,
    categories: Collection[str] = (),
) -> Iterator[DrawnRow]:
    """Draw rows, in order. One that cannot be drawn has its reason in the place of the picture.

    Args:
        rows: as `pipeline.annotations.rows.OutputRows` gives them.
        source: where the pictures are read from.
        options: what is drawn; everything by default.
        categories: names of those that are drawn; all if empty.
    """
    options = options or DrawOptions()
    waiting = iter(rows)
    while block := list(islice(waiting, _ROWS_AT_ONCE)):
        usable = [row for row in block if row["status"] == ANNOTATED]
        pictures = iter(source.read_many([row_uri(row) for row in usable]))
        for row in block:
            picture = next(pictures) if row["status"] == ANNOTATED else _row_failed(row)
            yield _drawn(row, picture, options, categories)


def drawable(row: Row, options: DrawOptions, categories: Collection[str] = ()) -> list[Row]:
    """The row's detections that these options and categories leave."""
    return [
        found
        for found in row["detections"]
        if found["score"] >= options.min_score and (not categories or found["category_name"] in categories)
    ]


@dataclass(frozen=True)
class RowObjects:
    """What is to be drawn of a row, as `pipeline.drawing.draw.draw` takes it; N detections, best score first.

    Attributes:
        boxes: ``(N, 4)`` xyxy in pixels of the picture.
        labels: ``(N,)`` index into ``categories``.
        scores: ``(N,)``.
        rles: N masks of the picture's size.
        categories: of these detections.
    """

    boxes: NDArray[np.float64]
    labels: NDArray[np.int64]
    scores: NDArray[np.float32]
    rles: list[Rle]
    categories: list[Category]


def row_objects(
    row: Row, picture: Picture, options: DrawOptions, categories: Collection[str] = ()
) -> RowObjects | ImageFailure:
    """The detections that these options and categories leave, or why they cannot be drawn on this picture."""
    if picture.shape[:2] != (row["height"], row["width"]):
        size = f"{picture.shape[0]} x {picture.shape[1]}"
        reason = f"the picture is now {size} (height x width), and was {row['height']} x {row['width']} when annotated"
        return ImageFailure("draw", "another_size", reason)
    found = drawable(row, options, categories)
    masks = pa.array([d["segmentation"] for d in found], SEGMENTATION)
    try:
        mask_column(masks, np.array([picture.shape[:2]] * len(found)).reshape(-1, 2))
    except DamagedRle as error:
        return ImageFailure("draw", "damaged_mask", f"a mask is damaged: {error}")
    boxes = np.array([d["bbox"] for d in found], np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    names = {d["category_id"]: d["category_name"] for d in found}
    labels = {category_id: label for label, category_id in enumerate(names)}
    return RowObjects(
        boxes,
        np.array([labels[d["category_id"]] for d in found], np.int64),
        np.array([d["score"] for d in found], np.float32),
        [Rle(size=d["segmentation"]["size"], counts=d["segmentation"]["counts"].encode()) for d in found],
        [Category(category_id, name) for category_id, name in names.items()],
    )


def row_uri(row: Row) -> UriText | None:
    """Where the row's picture is read from."""
    return None if row["image_uri"] is None else UriText(row["image_uri"])


def _row_failed(row: Row) -> ImageFailure:
    return ImageFailure("annotate", row["error_code"], f"failed when it was annotated: {row['error_message']}")


def _drawn(
    row: Row, picture: NDArray[np.uint8] | ImageFailure, options: DrawOptions, categories: Collection[str]
) -> DrawnRow:
    if isinstance(picture, ImageFailure):
        return DrawnRow(row["image_id"], picture, 0)
    found = row_objects(row, picture, options, categories)
    if isinstance(found, ImageFailure):
        return DrawnRow(row["image_id"], found, 0)
    drawn = draw(picture, found.boxes, found.labels, found.scores, found.rles, found.categories, options=options)
    return DrawnRow(row["image_id"], drawn, len(found.boxes))
