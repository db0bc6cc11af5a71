"""A COCO results file as predictions: dealt by image id, each part a group."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pycocotools import mask as coco_mask
from pydantic_core import from_json

from pipeline.coco.errors import InputError
from pipeline.coco.json_stream import JsonLists
from pipeline.coco.rows import IMAGE_ID, BadRow, IdKind, at_place, result_row, result_schema
from pipeline.coco.segmentations import BadSegmentation, as_rles
from pipeline.evaluate.inputs.ground_truth import RowBuffer, count_parts
from pipeline.evaluate.inputs.predictions import BLOCK_IMAGES, CategoryKey, DetectionBatch, listed_schema
from pipeline.evaluate.shuffle.chunks import ChunkFile, ChunkStore, Dealer, chunks_of
from pipeline.masks.rle import RleColumn
from pipeline.metrics.blocks import Categories, DetectionBlock
from pipeline.storage.uris import Uri
from pipeline.tables.arrays import Float64s, Int64s
from pipeline.tables.arrow_types import in_one_piece
from pipeline.tables.ragged import elements_of, offsets_of, owners_of, positions_in


@dataclass(frozen=True)
class DealtResults:
    """`Predictions` from a COCO results file, dealt by image id on scratch storage: a group is a part.

    Attributes:
        uri: of the results file.
        id_type: of the images' ids: ``int64`` or ``large_string``.
        store: where the parts are.
        num_groups: parts that the results are dealt into; each is a group.
        files: ``coco_rows.result_schema`` by image id, those of an image in the order of the file.
        num_without_box: results whose box is the smallest one about their mask.
    """

    uri: Uri
    id_type: pa.DataType
    store: ChunkStore
    num_groups: int
    files: tuple[ChunkFile, ...]
    num_without_box: int

    @property
    def lists_empty_images(self) -> bool:
        """No: an image without detections does not occur."""
        return False

    def list_group(self, group: int) -> tuple[pa.Table, Counter[CategoryKey]]:
        """See `Predictions`."""
        table = self._read(group)
        ids = pc.unique(table["image_id"])
        rest = [pa.array(np.zeros(len(ids), kind)) for kind in (np.bool_, np.int32, np.int32)]
        groups = pa.array(np.full(len(ids), group, np.int64))
        counts = pc.value_counts(table["category_id"]).to_pylist()
        listed = pa.table([ids, groups, *rest], schema=listed_schema(self.id_type))
        return listed, Counter({(pair["values"], None): pair["counts"] for pair in counts})

    def read_group(self, group: int, masks: bool) -> Iterator[DetectionBatch]:
        """See `Predictions`."""
        table = self._read(group)
        encoded = in_one_piece(table["image_id"]).dictionary_encode()
        images = encoded.indices.to_numpy()
        table = table.take(pa.array(np.argsort(images, kind="stable"))).combine_chunks()
        offsets = offsets_of(np.bincount(images, minlength=len(encoded.dictionary)))
        for start in range(0, len(encoded.dictionary), BLOCK_IMAGES):
            ids = encoded.dictionary.slice(start, BLOCK_IMAGES)
            first, last = int(offsets[start]), int(offsets[start + len(ids)])
            some = offsets[start : start + len(ids) + 1] - first
            yield ResultsBatch(str(self.uri), ids, some, table.slice(first, last - first))

    def _read(self, group: int) -> pa.Table:
        return self.store.read(chunks_of(self.files, group), result_schema(self.id_type))


@dataclass(frozen=True)
class ResultsBatch:
    """A `DetectionBatch`: the results on some images of a part, R images in all.

    Attributes:
        place: the file, for messages.
        image_ids: [R] of the images, each once.
        offsets: [R + 1] which rows of the table are those of each image.
        table: results by image, with the columns of `pipeline.coco.rows.result_schema`.
    """

    place: str
    image_ids: pa.Array
    offsets: Int64s
    table: pa.Table

    def block(self, rows: Int64s, image_sizes: Int64s, categories: Categories, masks: bool) -> DetectionBlock:
        """See `DetectionBatch`.

        As ``COCO.loadRes`` has it, but for one thing: areas by which objects are small, medium or large come from
        masks where masks are compared and from boxes where boxes are, whatever else the results carry.
        """
        lengths = np.diff(self.offsets)[rows]
        chosen, owners, positions = elements_of(self.offsets, rows), owners_of(lengths), positions_in(lengths)
        labels = categories.positions(self.table["category_id"].to_numpy()[chosen])
        kept = np.flatnonzero(labels >= 0)
        owners = owners[kept]
        table = self.table.take(pa.array(chosen[kept])).combine_chunks()
        with_mask, rles = self._rles(table, image_sizes[owners])
        return DetectionBlock(
            offsets=offsets_of(np.bincount(owners, minlength=len(rows))),
            positions=positions[kept],
            categories=labels[kept],
            boxes=_boxes(in_one_piece(table["box"]), with_mask, rles),
            scores=table["score"].to_numpy(),
            rles=rles if masks else None,
        )

    def _rles(self, table: pa.Table, sizes: Int64s) -> tuple[list[int], RleColumn]:
        """Which results were dealt with their masks, and these."""
        texts = {row: text for row, text in enumerate(table["mask"].to_pylist()) if text is not None}
        segmentations = [from_json(text) for text in texts.values()]
        pairs = zip(segmentations, sizes[list(texts)].tolist(), strict=True)
        try:
            found = as_rles(segmentations, [size if any(size) else _own_size(value) for value, size in pairs])
        except BadSegmentation as error:
            image_id = table["image_id"][list(texts)[error.index]].as_py()
            raise InputError(f"{self.place}: a result on image {image_id!r}: {error}") from None
        return list(texts), found


def _own_size(segmentation: Any) -> Any:
    """What an RLE says itself, where nobody knows the image's; two zeros where it says nothing that could be a size."""
    size = segmentation.get("size") if isinstance(segmentation, dict) else None
    return size if isinstance(size, list) and len(size) == 2 else (0, 0)


def have_string_ids(uri: Uri) -> bool:
    """Whether the first result goes by a string, or could: one that the export numbered has it beside the number.

    Raises:
        InputError: not a results file.
        StorageError: the file cannot be read.
    """
    first = next(iter(JsonLists(uri)), None)
    value = None if first is None else first.value
    return isinstance(value, dict) and isinstance(value.get(IMAGE_ID, value.get("image_id")), str)


def deal_results(uri: Uri, store: ChunkStore, masks: bool, string_ids: bool = False) -> DealtResults:
    """Read a results file once and deal it.

    Args:
        uri: a JSON list of results, perhaps compressed.
        store: where the parts go; not the one of the ground truth.
        masks: whether the segmentations are kept.
        string_ids: whether the ground truth's ids are strings: then results that were numbered by the export go by
            the string beside the number.

    Raises:
        InputError: not a results file, or a row of it is wrong.
        StorageError: the file cannot be read.
    """
    num_parts = count_parts(uri)
    dealer, kind, num_without_box = Dealer(store, "results", num_parts), IdKind(uri), 0
    rows = RowBuffer(dealer)
    elements = JsonLists(uri)
    for element in elements:
        if element.key is not None:
            break
        try:
            row = result_row(element.value, masks, string_ids)
            kind.check(row.image_id)
        except BadRow as error:
            raise at_place(uri, element, error) from None
        num_without_box += row.box is None
        if rows.add(row):
            rows.deal(result_schema(kind.arrow_type))
    if elements.keys != [None]:
        raise InputError(f"{uri} is no COCO results file: that is a list of results, without 'annotations'")
    rows.deal(result_schema(kind.arrow_type))
    return DealtResults(uri, kind.arrow_type, store, num_parts, dealer.close(), num_without_box)


def _boxes(boxes: pa.FixedSizeListArray, with_mask: list[int], rles: RleColumn) -> Float64s:
    """[D, 4]; where there is none, the smallest one about the mask."""
    without = boxes.is_null().to_numpy(zero_copy_only=False)
    filled = np.zeros((len(boxes), 4))
    filled[~without] = boxes.flatten().to_numpy().reshape(-1, 4)  # which passes over nulls
    for mask, row in enumerate(with_mask):
        if without[row]:
            filled[row] = coco_mask.toBbox(rles[mask])
    return filled
