"""One group of predictions with its ground truth -> blocks of images, side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice, pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic_core import from_json

from pipeline.coco.errors import InputError
from pipeline.coco.segmentations import BadSegmentation, as_rles
from pipeline.evaluate.inputs.ground_truth import DealtTruth
from pipeline.evaluate.inputs.pairing import truth_schema
from pipeline.evaluate.inputs.predictions import BLOCK_IMAGES, Predictions
from pipeline.evaluate.shuffle.chunks import Chunk, ChunkStore
from pipeline.masks.rle import RleColumn
from pipeline.metrics.blocks import DetectionBlock, TruthBlock
from pipeline.storage.uris import Uri
from pipeline.tables.arrays import Int64s
from pipeline.tables.packed import whole
from pipeline.tables.ragged import offsets_of

Blocks = tuple[TruthBlock, DetectionBlock]


def read_group(
    truth: DealtTruth, predictions: Predictions, store: ChunkStore, group: int, chunks: Sequence[Chunk]
) -> Iterator[Blocks]:
    """All images of a group, each in one block; a block has up to `BLOCK_IMAGES`.

    Memory: the group's ground truth without decoded masks, and two blocks.

    Args:
        truth: as it was dealt; its ``masks`` says whether blocks have masks.
        predictions: to read the group's detections from.
        store: of the ground truth.
        group: number of the group.
        chunks: of its ground truth, see ``pairing.truth_chunks``.

    Raises:
        InputError: an object whose mask does not fit its image, or the predictions have changed since they were
            listed.
    """
    images = whole(store.read(chunks, truth_schema(truth.id_type)))
    if not images.num_rows:
        return
    ids = images["image_id"]
    seen = np.zeros(len(ids), np.bool_)
    for batch in predictions.read_group(group, truth.masks):
        at = pc.index_in(batch.image_ids, value_set=ids).fill_null(-1).to_numpy().astype(np.int64)
        rows = np.flatnonzero(at >= 0)
        if len(rows):
            seen[at[rows]] = True
            block = _truth_block(truth, images.take(pa.array(at[rows])))
            yield block, batch.block(rows, block.image_sizes, truth.categories, truth.masks)
    lost = images["expected"].to_numpy(zero_copy_only=False).astype(np.bool_) & ~seen
    if lost.any():
        name = repr(ids[int(np.argmax(lost))].as_py())
        raise InputError(f"{predictions.uri} has changed while it was evaluated: image {name} is gone; evaluate again")
    rest = np.flatnonzero(~seen)
    for start in range(0, len(rest), BLOCK_IMAGES):
        block = _truth_block(truth, images.take(pa.array(rest[start : start + BLOCK_IMAGES])))
        yield block, _no_detections(len(block), truth.masks)


def _truth_block(truth: DealtTruth, images: pa.RecordBatch) -> TruthBlock:
    lists = images["objects"]
    lengths = pc.list_value_length(lists).to_numpy()
    objects = lists.flatten()
    ids = images["image_id"].to_pylist()
    sizes = np.stack([images["height"].to_numpy(), images["width"].to_numpy()], axis=1).astype(np.int64)
    return TruthBlock(
        image_ids=ids,
        orders=images["order"].to_numpy(),
        image_sizes=sizes,
        offsets=offsets_of(lengths),
        ids=objects.field("id").to_numpy(),
        categories=truth.categories.positions(objects.field("category_id").to_numpy()),
        boxes=objects.field("box").flatten().to_numpy().reshape(-1, 4),
        areas=objects.field("area").to_numpy(),
        crowd=objects.field("crowd").to_numpy(zero_copy_only=False).astype(np.bool_),
        rles=_rles(truth.uri, objects, np.repeat(sizes, lengths, axis=0)) if truth.masks else None,
        file_names=images["file_name"].to_pylist(),
    )


def _rles(uri: Uri, objects: pa.StructArray, sizes: Int64s) -> RleColumn:
    try:
        return as_rles(_segmentations(objects), sizes.tolist())
    except BadSegmentation as error:
        raise InputError(f"{uri}, annotation {objects.field('id')[error.index]}: {error}") from None


def _segmentations(objects: pa.StructArray) -> Iterator[Any]:
    """Of each object: its polygons as arrays, or what else it has."""
    lists = objects.field("polygons")
    polygons = lists.flatten()
    coordinates = polygons.flatten().to_numpy(zero_copy_only=False)  # null, which is no coordinate either, becomes NaN
    bounds = pairwise(offsets_of(_lengths(polygons)).tolist())
    for number, text in zip(_lengths(lists).tolist(), objects.field("mask").to_pylist(), strict=True):
        if text is None:
            yield [coordinates[start:stop] for start, stop in islice(bounds, number)]
        else:
            yield from_json(text)


def _lengths(lists: pa.LargeListArray) -> Int64s:
    return pc.list_value_length(lists).fill_null(0).to_numpy()


def _no_detections(num_images: int, masks: bool) -> DetectionBlock:
    nothing = np.zeros(0, np.int64)
    return DetectionBlock(
        offsets=np.zeros(num_images + 1, np.int64),
        positions=nothing,
        categories=nothing,
        boxes=np.zeros((0, 4)),
        scores=np.zeros(0),
        rles=RleColumn.of([]) if masks else None,
    )
