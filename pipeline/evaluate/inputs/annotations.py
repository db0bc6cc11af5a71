"""The annotate job's output as predictions: its Parquet files in groups of consecutive ones, its rows as detections."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.annotations.data_file import OutputError
from pipeline.annotations.data_folder import DATA_FOLDER, DataFolder
from pipeline.annotations.run_json import RunJson
from pipeline.annotations.schema import FAILED, READABLE_VERSIONS, there
from pipeline.coco.errors import InputError
from pipeline.evaluate.inputs.predictions import BLOCK_IMAGES, CategoryKey, DetectionBatch, listed_schema
from pipeline.metrics.rows import OutputBatch
from pipeline.storage.objects.base import Entry
from pipeline.storage.objects.open import open_objects
from pipeline.storage.uris import Uri
from pipeline.tables.arrow_types import in_one_piece
from pipeline.tables.ids import wide, wide_type

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
                for rows in map(there, file.iter_batches(BLOCK_IMAGES, _MASKS if masks else _BOXES)):
                    yield OutputBatch(place, wide(rows["image_id"]), rows["detections"])

    def _listed(self, table: pa.Table, group: int) -> pa.Table:
        columns = [
            wide(in_one_piece(table["image_id"])),
            pa.array(np.full(table.num_rows, group)),
            pc.equal(table["status"], FAILED),
            pc.fill_null(table["height"], 0),
            pc.fill_null(table["width"], 0),
        ]
        return pa.table(columns, schema=listed_schema(self.id_type))


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
