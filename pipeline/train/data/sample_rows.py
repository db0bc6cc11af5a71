"""Samples as rows of Arrow tables and back, exactly: how they travel from the tasks that make them to the trainer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.tables.binary import binary_array, binary_views
from pipeline.train.data.draws import Drawn
from pipeline.train.data.labelled import DataError
from pipeline.train.sample.sample import Sample

# One schema, so that tables of samples with and without objects go together. Of each mask the bits within its box
# travel, row after row; ids are JSON, as sources may have numbers and texts.
_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("pixels", pa.large_binary()),
        ("boxes", pa.large_binary()),
        ("labels", pa.large_binary()),
        ("masks", pa.large_binary()),
        ("ignored", pa.large_binary()),
        ("unreadable", pa.string()),
        ("error", pa.string()),
    ]
)


def to_rows(drawn: Sequence[Drawn]) -> pa.Table:
    """A row for each. Boxes must be those of the masks, as they are after every step of the augmentation."""
    samples = [one.sample for one in drawn]
    columns = [
        pa.array([json.dumps(sample.image_id) for sample in samples], pa.string()),
        pa.array([sample.pixels.shape[0] for sample in samples], pa.int32()),
        pa.array([sample.pixels.shape[1] for sample in samples], pa.int32()),
        binary_array([sample.pixels for sample in samples]),
        binary_array([sample.boxes for sample in samples]),
        binary_array([sample.labels for sample in samples]),
        binary_array([_packed(sample) for sample in samples]),
        binary_array([sample.ignored for sample in samples]),
        pa.array([json.dumps(one.unreadable) if one.unreadable else None for one in drawn], pa.string()),
        pa.nulls(len(samples), pa.string()),
    ]
    return pa.table(columns, schema=_SCHEMA)


def error_row(error: DataError) -> pa.Table:
    """In place of samples: `from_rows` raises it where it is read."""
    return pa.table([pa.array([None if f.name != "error" else str(error)], f.type) for f in _SCHEMA], schema=_SCHEMA)


def from_rows(rows: pa.Table) -> Iterator[Drawn]:
    """What `to_rows` was given; pixels are views of the table's memory.

    Raises:
        DataError: of `error_row`.
    """
    names = ("pixels", "boxes", "labels", "masks", "ignored")
    views = zip(*(binary_views(rows[name]) for name in names), strict=True)
    others = rows.drop_columns(list(names)).to_pylist()
    for row, (pixels, *objects) in zip(others, views, strict=True):
        if row["error"] is not None:
            raise DataError(row["error"])
        size = (row["height"], row["width"])
        boxes, labels, packed, ignored = objects
        found = np.frombuffer(boxes, np.float32).reshape(-1, 4)
        sample = Sample(
            image_id=json.loads(row["image_id"]),
            pixels=np.frombuffer(pixels, np.uint8).reshape(*size, 3),
            boxes=found,
            labels=np.frombuffer(labels, np.int64),
            masks=_unpacked(np.frombuffer(packed, np.uint8), found, size),
            ignored=np.frombuffer(ignored, np.bool_),
        )
        unreadable = json.loads(row["unreadable"] or "[]")
        yield Drawn(sample, tuple((image_id, reason) for image_id, reason in unreadable))


def _packed(sample: Sample) -> NDArray[np.uint8]:
    windows = [mask[_window(box)] for mask, box in zip(sample.masks, sample.boxes, strict=True)]
    return np.concatenate([np.zeros(0, np.uint8), *(np.packbits(window) for window in windows)])


def _unpacked(packed: NDArray[np.uint8], boxes: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.bool_]:
    masks = np.zeros((len(boxes), *size), np.bool_)
    start = 0
    for mask, box in zip(masks, boxes, strict=True):
        window = mask[_window(box)]
        stop = start + -(-window.size // 8)
        window[:] = np.unpackbits(packed[start:stop], count=window.size).reshape(window.shape)
        start = stop
    return masks


def _window(box: NDArray[np.float32]) -> tuple[slice, slice]:
    left, top, right, bottom = box.astype(int).tolist()
    return slice(top, bottom), slice(left, right)
