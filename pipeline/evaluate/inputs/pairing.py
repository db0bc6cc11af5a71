"""Ground truth and predictions, brought together a hash part at a time: which group of predictions needs which truth.

Every image of the ground truth goes to the group of its prediction. Those without one go to the groups in turn, so
that each is evaluated exactly once. The join also closes the books of both sides.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.coco.errors import InputError
from pipeline.coco.rows import IMAGE_ID, image_schema, object_schema
from pipeline.evaluate.inputs.books import SAME_IDS, InputReport, WhichImages
from pipeline.evaluate.inputs.ground_truth import DealtTruth
from pipeline.evaluate.inputs.predictions import CategoryKey, ListedImages, Predictions, listed_schema
from pipeline.evaluate.shuffle.chunks import Chunk, ChunkFile, ChunkStore, chunks_of
from pipeline.evaluate.shuffle.id_order import ORDER_SCHEMA
from pipeline.messages.examples import NUM_EXAMPLES, Examples
from pipeline.metrics.blocks import Categories
from pipeline.tables.arrays import Bools, Int64s
from pipeline.tables.arrow_types import in_one_piece, taken
from pipeline.tables.packed import whole
from pipeline.tables.ragged import offsets_of


@dataclass(frozen=True)
class PairedPart:
    """A hash part of the ground truth, sorted by the groups of the predictions.

    Attributes:
        file: `truth_schema`, a chunk for each group.
        report: the books of this part.
    """

    file: ChunkFile
    report: InputReport


class Joined(NamedTuple):
    """Where the images [N] of a part have their predictions.

    Attributes:
        rows: [N] index among the listed images, -1 where there is none.
        listed: the listed images, with the columns of `listed_schema`.
    """

    rows: Int64s
    listed: pa.Table


def truth_schema(id_type: pa.DataType) -> pa.Schema:
    """Of images with their annotations; ``expected``: the predictions have a row of it."""
    objects = pa.large_list(pa.struct(list(object_schema(id_type))[1:]))
    columns = [("order", pa.int64()), ("expected", pa.bool_()), ("objects", objects)]
    return pa.schema([*image_schema(id_type), *map(pa.field, *zip(*columns, strict=True))])


def check_sides(
    truth: DealtTruth, predictions: Predictions, listed: Sequence[ListedImages], images: WhichImages
) -> InputReport:
    """Compare what both sides say of all images, before these are joined.

    Returns:
        What is wrong with the categories; add it to the reports of the parts.

    Raises:
        InputError: integers on one side and strings on the other; or only annotated images are asked for, and
            the predictions do not say which those are.
    """
    if images == "annotated" and not predictions.lists_empty_images:
        raise InputError(
            f"{predictions.uri} is a results file, which does not say which images were annotated: an image "
            "without results may have none; evaluate all images"
        )
    first_found = next((part.first_id for part in listed if part.num_images), None)
    if None not in (first_found, truth.first_id) and predictions.id_type != truth.id_type:
        raise InputError(
            f"image ids of {predictions.uri} are like {first_found!r}, those of {truth.uri} like "
            f"{truth.first_id!r}: both must be integers or both strings (or, in ground truth that was "
            f"exported, still have {IMAGE_ID}); nothing is converted by guessing. {SAME_IDS}"
        )
    detections: Counter[CategoryKey] = Counter()
    for part in listed:
        detections.update(part.detections)
    return _compare_categories(truth.categories, detections) + InputReport(without_box=predictions.num_without_box)


def pair_part(
    truth: DealtTruth,
    listed: Sequence[ListedImages],
    store: ChunkStore,
    part: int,
    num_groups: int,
    images: WhichImages,
) -> PairedPart:
    """Join one part.

    Args:
        truth: as it was dealt.
        listed: all images of the predictions.
        store: of both; the file goes there, too.
        part: number of the part.
        num_groups: groups of the predictions.
        images: which images of the ground truth count.
    """
    images_table = store.read(chunks_of(truth.images, part), image_schema(truth.id_type))
    objects = store.read(chunks_of(truth.objects, part), object_schema(truth.id_type))
    object_ids = store.read(chunks_of(truth.object_ids, part), pa.schema([("id", pa.int64())]))
    rows = store.read(chunks_of([each.file for each in listed], part), listed_schema(truth.id_type))
    joined = Joined(_index_in(images_table["image_id"], rows["image_id"]), rows)
    owners = _index_in(objects["image_id"], images_table["image_id"])
    report = _report(images_table, objects, object_ids, owners, joined)
    groups = _groups(joined, part, num_groups)
    counted = groups >= 0 if images == "all" else _annotated(joined)
    kept = np.flatnonzero(counted)
    kept = kept[np.argsort(groups[kept], kind="stable")]  # as they are dealt, so that they are copied once
    images_table = images_table.append_column("order", _orders(truth, store, part, images_table))
    images_table = images_table.append_column("expected", pa.array(joined.rows >= 0))
    table = _with_objects(images_table, objects, owners, kept)
    file = store.write(f"paired-{part:05d}.arrows", table, groups[kept], num_groups)
    return PairedPart(file, report)


def truth_chunks(paired: Sequence[PairedPart], group: int) -> tuple[Chunk, ...]:
    """Where the ground truth of a group is: at most one chunk of each part."""
    chunks = (part.file.part(group) for part in paired)
    return tuple(each for each in chunks if each.stop > each.start)


def _index_in(ids: pa.ChunkedArray, among: pa.ChunkedArray) -> Int64s:
    """[N] where each id comes first among others, -1 where it does not."""
    if not (len(ids) and len(among)):  # which may then be of different types
        return np.full(len(ids), -1)
    index = pc.index_in(in_one_piece(ids), value_set=in_one_piece(among))
    return index.fill_null(-1).to_numpy().astype(np.int64)


def _groups(joined: Joined, part: int, num_groups: int) -> Int64s:
    """[N] the group of each image."""
    groups = (np.arange(len(joined.rows)) + part) % num_groups
    has_row = joined.rows >= 0
    groups[has_row] = joined.listed["group"].to_numpy()[joined.rows[has_row]]
    return groups


def _annotated(joined: Joined) -> Bools:
    failed = np.append(joined.listed["failed"].to_numpy(zero_copy_only=False).astype(np.bool_), True)
    return ~failed[joined.rows]


def _orders(truth: DealtTruth, store: ChunkStore, part: int, images: pa.Table) -> pa.Array:
    """[N] numbers that sort like the ids."""
    if pa.types.is_int64(truth.id_type):
        return in_one_piece(images["image_id"])
    orders = store.read(chunks_of(truth.orders, part), ORDER_SCHEMA)
    return in_one_piece(orders["order"]).take(pa.array(_index_in(images["image_id"], orders["image_id"])))


def _with_objects(images: pa.Table, objects: pa.Table, owners: Int64s, chosen: Int64s) -> pa.Table:
    """The chosen images, each with the list of its annotations in the order of the file."""
    places = np.full(images.num_rows + 1, -1)  # the last for owners that are not there
    places[chosen] = np.arange(len(chosen))
    places = places[owners]
    order = np.argsort(places, kind="stable")[np.count_nonzero(places < 0) :]
    lengths = np.bincount(places[order], minlength=len(chosen))
    dealt = taken(objects.drop_columns("image_id"), order)
    lists = pa.LargeListArray.from_arrays(pa.array(offsets_of(lengths)), whole(dealt).to_struct_array())
    columns = [*images.take(pa.array(chosen)).columns, lists]
    return pa.table(columns, schema=truth_schema(images["image_id"].type))


def _report(images: pa.Table, objects: pa.Table, object_ids: pa.Table, owners: Int64s, joined: Joined) -> InputReport:
    ids, listed = images["image_id"], joined.listed
    has_row = joined.rows >= 0
    failed = has_row & ~_annotated(joined)
    unknown = _index_in(listed["image_id"], ids) < 0
    return InputReport(
        images=images.num_rows,
        objects=objects.num_rows,
        rows=listed.num_rows,
        common=int(np.count_nonzero(has_row)),
        missing=_examples(ids, ~has_row),
        failed=_examples(ids, failed),
        unknown=_examples(listed["image_id"], unknown),
        other_size=_other_sizes(images, joined, has_row & ~failed),
        repeated_images=_repeated(ids),
        repeated_rows=_repeated(listed["image_id"]),
        repeated_objects=_repeated(object_ids["id"]),
        orphans=_orphans(objects, owners),
    )


def _examples(ids: pa.ChunkedArray, chosen: Bools) -> Examples:
    some = np.flatnonzero(chosen)
    return Examples.of(map(repr, ids.take(pa.array(some[:NUM_EXAMPLES])).to_pylist()), len(some))


def _repeated(ids: pa.ChunkedArray) -> Examples:
    """The ids that are there more than once."""
    values, counts = pc.value_counts(in_one_piece(ids)).flatten()
    return _examples(pa.chunked_array([values]), counts.to_numpy() > 1)


def _orphans(objects: pa.Table, owners: Int64s) -> Examples:
    rows = np.flatnonzero(owners < 0)
    first = objects.select(["id", "image_id"]).take(pa.array(rows[:NUM_EXAMPLES])).to_pylist()
    return Examples.of((f"{row['id']} (of image {row['image_id']!r})" for row in first), len(rows))


def _other_sizes(images: pa.Table, joined: Joined, annotated: Bools) -> Examples:
    rows = np.flatnonzero(annotated)
    here, there = _sizes(images)[rows], _sizes(joined.listed)[joined.rows[rows]]
    wrong = np.flatnonzero((here != there).any(axis=1) & here.all(axis=1) & there.all(axis=1))
    names = images["image_id"].take(pa.array(rows[wrong[:NUM_EXAMPLES]])).to_pylist()
    texts = (
        f"{name!r} ({there[i][0]} x {there[i][1]}, not {here[i][0]} x {here[i][1]})"
        for name, i in zip(names, wrong.tolist(), strict=False)
    )
    return Examples.of(texts, len(wrong))


def _sizes(table: pa.Table) -> Int64s:
    return np.stack([table["height"].to_numpy(), table["width"].to_numpy()], axis=1).astype(np.int64)


def _compare_categories(categories: Categories, detections: Counter[CategoryKey]) -> InputReport:
    """Names are compared without regard to case and to spaces around them."""
    names = dict(zip(categories.ids, categories.names, strict=True))
    foreign: Counter[str] = Counter()
    renamed = []
    for (category_id, name), count in sorted(detections.items(), key=lambda item: (item[0][0], str(item[0][1]))):
        if category_id not in names:
            foreign[name or f"category {category_id}"] += count
        elif name is not None and name.strip().lower() != names[category_id].strip().lower():
            renamed.append(f"{category_id} is {name!r} in the predictions and {names[category_id]!r} in the truth")
    return InputReport(
        detections=sum(detections.values()),
        foreign=dict(foreign),
        renamed=Examples.of(renamed),
    )
