"""The annotate job's output as predictions: its Parquet files in groups of consecutive ones, its rows as detections."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.annotations.data_file import OutputError
from pipeline.annotations.data_folder import DATA_FOLDER, DataFolder
from pipeline.annotations.run_json import RunJson
from pipeline.annotations.schema import FAILED, READABLE_VERSIONS, mask_column, there
from pipeline.coco.errors import InputError
from pipeline.evaluate.inputs.ground_truth import Categories
from pipeline.evaluate.inputs.predictions import BLOCK_IMAGES, CategoryKey, DetectionBatch, listed_schema
from pipeline.masks.rle import DamagedRle, RleColumn
from pipeline.messages.examples import NUM_EXAMPLES, Examples
from pipeline.metrics.blocks import DetectionBlock
from pipeline.storage.objects.base import Entry
from pipeline.storage.objects.open import open_objects
from pipeline.storage.uris import Uri
from pipeline.tables.arrays import Bools, Int64s
from pipeline.tables.ids import wide, wide_type
from pipeline.tables.ragged import offsets_of, owners_of, positions_in

# A group is never less than a file.
GROUP_IMAGES = 2048
# The number of range reads grows with it; beyond 8 million images the groups grow.
MAX_GROUPS = 4096

_CONCURRENCY = 32
_ELEMENT = "detections.list.element."
_LISTED = ["image_id", "status", "height", "width", _ELEMENT + "category_id", _ELEMENT + "category_name"]
_BOXES = ["image_id", "status", *(_ELEMENT + name for name in ("bbox", "score", "category_id"))]
_MASKS = [*_BOXES, _ELEMENT + "segmentation"]


@dataclass(frozen=True)
class AnnotatedOutput:
    """`Predictions` from an output of the annotate job: a group is a few of its data files.

    Attributes:
        uri: of the output folder.
        id_type: of the images' ids: ``int64`` or ``large_string``.
        groups: the data files of each group.
        run: the report of its last run; ``None``: there is none.
    """

    uri: Uri
    id_type: pa.DataType
    groups: tuple[tuple[Entry, ...], ...]
    run: RunJson | None

    @property
    def lists_empty_images(self) -> bool:
        """Yes: every image has a row. Rows whose pictures are gone count as not there."""
        return True

    @property
    def num_without_box(self) -> int:
        """None."""
        return 0

    @property
    def num_groups(self) -> int:
        """See `Predictions`."""
        return len(self.groups)

    def list_group(self, group: int) -> tuple[pa.Table, Counter[CategoryKey]]:
        """See `Predictions`."""
        objects = open_objects(self.uri)
        folder = DataFolder(self.uri, _CONCURRENCY)
        tables, counts = [], Counter[CategoryKey]()
        for entry in self.groups[group]:
            table = there(folder.read(objects, entry, _LISTED))
            tables.append(self._listed(table, group))
            counts.update(_count_categories(table["detections"]))
        return pa.concat_tables(tables), counts

    def read_group(self, group: int, masks: bool) -> Iterator[DetectionBatch]:
        """See `Predictions`."""
        objects, folder = open_objects(self.uri), DataFolder(self.uri, _CONCURRENCY)
        for entry in self.groups[group]:
            place = f"{self.uri}/{DATA_FOLDER}/{entry.name}"
            with folder.open(objects, entry) as file:
                for number in range(file.num_row_groups):
                    rows = there(file.read_row_group(number, _MASKS if masks else _BOXES))
                    for start in range(0, rows.num_rows, BLOCK_IMAGES):
                        some = rows.slice(start, BLOCK_IMAGES).combine_chunks()
                        ids = wide(some["image_id"].combine_chunks())
                        yield OutputBatch(place, ids, some["detections"].combine_chunks())

    def _listed(self, table: pa.Table, group: int) -> pa.Table:
        columns = [
            wide(table["image_id"].combine_chunks()),
            pa.array(np.full(table.num_rows, group)),
            pc.equal(table["status"], FAILED),
            pc.fill_null(table["height"], 0),
            pc.fill_null(table["width"], 0),
        ]
        return pa.table(columns, schema=listed_schema(self.id_type))


@dataclass(frozen=True)
class OutputBatch:
    """A `DetectionBatch`: some rows of a data file, R in all.

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


def open_annotated_output(uri: Uri) -> AnnotatedOutput:
    """Check an output of the annotate job, and cut it into groups. Reads the files' footers.

    Raises:
        InputError: there are no data, files of other origin, files that do not belong together, or a damaged run.json.
    """
    try:
        footers = DataFolder(uri, _CONCURRENCY).current(open_objects(uri))
        run = RunJson.read(uri)
    except OutputError as error:
        raise InputError(str(error)) from error
    if not footers:
        raise InputError(
            f"{uri} holds no predictions: there is no file in its folder {DATA_FOLDER}; "
            "give the output of annotate, or a COCO results file (.json)"
        )
    footer = next(iter(footers.values()))
    if not footer.is_readable:
        known = " and ".join(READABLE_VERSIONS)
        raise InputError(
            f"{uri} was written with schema {footer.schema_version}, this code reads {known}; "
            "evaluate it with the version that wrote it"
        )
    id_type = wide_type(footer.schema.field("image_id").type)
    files = [(entry, footer.counts.rows) for entry, footer in footers.items()]
    return AnnotatedOutput(uri, id_type, tuple(_groups(files)), run)


def _groups(files: Sequence[tuple[Entry, int]]) -> Iterator[tuple[Entry, ...]]:
    wanted = max(GROUP_IMAGES, -(-sum(rows for _, rows in files) // MAX_GROUPS))
    waiting: list[Entry] = []
    num_images = 0
    for entry, rows in files:
        if waiting and num_images + rows > wanted:
            yield tuple(waiting)
            waiting, num_images = [], 0
        waiting.append(entry)
        num_images += rows
    if waiting:
        yield tuple(waiting)


def _count_categories(detections: pa.ChunkedArray) -> dict[CategoryKey, int]:
    flat = pc.list_flatten(detections)
    pairs = pa.table({name: pc.struct_field(flat, name) for name in ("category_id", "category_name")})
    counted = pairs.group_by(["category_id", "category_name"]).aggregate([([], "count_all")]).to_pylist()
    return {(row["category_id"], row["category_name"]): row["count_all"] for row in counted}


def _by(size: NDArray[np.integer]) -> str:
    return " x ".join(map(str, size.tolist()))
