"""The schema of the output, and the builder of its one nested column.

One row per image, failed or not:

====================  ==================  ==========================================================
column                type                meaning
====================  ==================  ==========================================================
``image_id``          int64 or string     the manifest's; unique in the output
``image_uri``         string              where it came from, without credentials and query; null for
                                          images that came as bytes
``height, width``     int32               of the original picture; null where it was not decoded
``exif_orientation``  int8                1 to 8 as the file says, 1 where it says nothing; null where it
                                          was not decoded
``status``            string              ``annotated``, ``failed``, or ``deleted``: the picture is gone, and the row
                                          says what was found while it was there (``manifest.deleted: mark``)
``detections``        list of struct      best score first; empty for images on which nothing was found,
                                          **null for failed ones**, so that no average counts these as
                                          images without objects
``stage``             string              which stage gave up; this and the next two are null if annotated
``error_code``        string              stable, for machines
``error_message``     string              for people, without credentials
``run_id``            string              the run that made the row
``object_etag``       string              of the picture that was read: its ETag without quotes, a weak one
                                          (``W/...``) as it is; ``sha256:<hex>`` of the bytes where they stood in
                                          the manifest; null where the store has none, as local files
``object_size``       int64               bytes of the encoded picture
``object_mtime``      timestamp[us, UTC]  when it was last changed, as its store says; null where that does not tell
``object_version``    string              its VersionId where an S3 bucket keeps versions
carried columns       the manifest's      as the config names them
====================  ==================  ==========================================================

A detection:

====================  ==================  ==========================================================
``bbox``              4 x float32         x, y, width, height in pixels of the image
``score``             float32             0 to 1
``category_id``       int32               the model's; COCO's own (1 to 90) for COCO models
``category_name``     string              the same, for people
``area``              float32             pixels of the mask
``segmentation``      struct              COCO's compressed RLE: ``size`` 2 x int32 (height, width),
                                          ``counts`` string
====================  ==================  ==========================================================

``counts`` is a string, so that a row goes into JSON as it is; pycocotools wants it ``.encode()``\\ d.

The columns ``object_*`` are of the very request that brought the picture, and null where none did; a picture that was
read and failed afterwards has them.

A run goes on with an output of an earlier release, whose finished images are as good as ever, so an output may hold
files of both. Those of schema 1 have no columns from ``run_id`` on. They are read as if they had (`current_schema`),
with the run that their footer names, and null for what they cannot know. Some of them have an empty list in failed
rows, so who reads an output asks ``status`` which images failed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.masks.rle import DamagedRle, RleColumn

SCHEMA_VERSION = "2"
_BEFORE = "1"
READABLE_VERSIONS = (_BEFORE, SCHEMA_VERSION)

ANNOTATED = "annotated"
FAILED = "failed"
DELETED = "deleted"

# Parquet calls a list's values "element", and so do we, or what is read would have another type's text.
_BOX = pa.list_(pa.field("element", pa.float32()), 4)
_SIZE = pa.list_(pa.field("element", pa.int32()), 2)
SEGMENTATION = pa.struct([("size", _SIZE), ("counts", pa.string())])
DETECTION = pa.struct(
    [
        ("bbox", _BOX),
        ("score", pa.float32()),
        ("category_id", pa.int32()),
        ("category_name", pa.string()),
        ("area", pa.float32()),
        ("segmentation", SEGMENTATION),
    ]
)
DETECTIONS = pa.list_(pa.field("element", DETECTION))

_COLUMNS_OF_1 = pa.schema(
    [
        ("image_uri", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("exif_orientation", pa.int8()),
        ("status", pa.string()),
        ("detections", DETECTIONS),
        ("stage", pa.string()),
        ("error_code", pa.string()),
        ("error_message", pa.string()),
    ]
)
# What fetching a picture tells about it.
OBJECT_COLUMNS = pa.schema(
    [
        ("object_etag", pa.string()),
        ("object_size", pa.int64()),
        ("object_mtime", pa.timestamp("us", "UTC")),
        ("object_version", pa.string()),
    ]
)
_ADDED = pa.schema([("run_id", pa.string()), *OBJECT_COLUMNS])
_COLUMNS = pa.schema([*_COLUMNS_OF_1, *_ADDED])
_NAMES_OF_1 = ("image_id", *_COLUMNS_OF_1.names)
RESERVED_NAMES = ("image_id", *_COLUMNS.names)
_EMPTY = pa.schema([])

Rows = TypeVar("Rows", pa.Table, pa.RecordBatch)


def output_schema(id_type: pa.DataType, carried: pa.Schema = _EMPTY) -> pa.Schema:
    """The schema of every data file of one output.

    Args:
        id_type: of ``image_id``: int64 or string.
        carried: the manifest's columns that go into the output, in this order.

    Raises:
        ValueError: another id type; a carried column with a name that is taken or comes twice.
    """
    if id_type not in (pa.int64(), pa.string()):
        raise ValueError(f"image_id must be int64 or string, not {id_type}")
    taken = sorted({n for n in carried.names if n in RESERVED_NAMES or carried.names.count(n) > 1})
    if taken:
        raise ValueError(f"these columns cannot be carried, their names are taken: {', '.join(taken)}")
    return pa.schema([pa.field("image_id", id_type), *_COLUMNS, *(f.remove_metadata() for f in carried)])


def there(rows: Rows) -> Rows:
    """Rows, with ``status`` among their columns, without those whose pictures are gone: for whoever asks what is."""
    present = pc.not_equal(rows["status"], DELETED)
    # A filter copies all of them. A null counts as false.
    return rows if pc.all(present, skip_nulls=False).as_py() else rows.filter(present)


def check_output_schema(schema: pa.Schema) -> None:
    """Raise unless a table with this schema can be written as it is.

    Raises:
        ValueError: saying which columns differ.
    """
    names = schema.names
    if names[: len(RESERVED_NAMES)] != list(RESERVED_NAMES):
        raise ValueError(f"columns must begin with {', '.join(RESERVED_NAMES)}, not {', '.join(names)}")
    wanted = output_schema(schema.field("image_id").type, pa.schema(list(schema)[len(RESERVED_NAMES) :]))
    wrong = [f"{a.name} is {a.type}, not {b.type}" for a, b in zip(schema, wanted, strict=True) if a.type != b.type]
    if wrong:
        raise ValueError("; ".join(wrong))


def current_schema(schema: pa.Schema, version: str) -> pa.Schema:
    """What the rows of a file are read as.

    Args:
        schema: of the file.
        version: that it was written with, one of `READABLE_VERSIONS`.

    Raises:
        ValueError: it is not what that version has.
    """
    if version != _BEFORE:
        check_output_schema(schema)
        return schema
    own, carried = list(schema)[: len(_NAMES_OF_1)], list(schema)[len(_NAMES_OF_1) :]
    if tuple(field.name for field in own) != _NAMES_OF_1:
        raise ValueError(f"columns must begin with {', '.join(_NAMES_OF_1)}, not {', '.join(schema.names)}")
    current = pa.schema([*own, *_ADDED, *(field for field in carried if not _is_added(field.name))])
    check_output_schema(current)
    return current


def stored_columns(columns: Sequence[str], version: str) -> list[str]:
    """Those of some columns that files of a version have, by their paths; at least one."""
    if version != _BEFORE:
        return list(columns)
    return [name for name in columns if not _is_added(name)] or ["image_id"]


def current_rows(stored: Rows, columns: Sequence[str] | None, version: str, run_id: str) -> Rows:
    """Rows of a file with the columns that it does not have.

    Args:
        stored: the `stored_columns`, or all.
        columns: that are wanted, by their paths; ``None`` for all.
        version: that the file was written with.
        run_id: of its footer.
    """
    if version != _BEFORE:
        return stored
    known = {"run_id": run_id}
    names = current_schema(stored.schema, version).names if columns is None else _tops(columns, stored.schema.names)
    rows = stored.select([name for name in stored.schema.names if not _is_added(name)])
    for field in (field for field in _ADDED if field.name in names):
        rows = rows.append_column(field, pa.repeat(pa.scalar(known.get(field.name), field.type), stored.num_rows))
    return rows.select(names)


def _is_added(name: str) -> bool:
    """Whether files of schema 1 have no such column, or a carried one whose name was free then."""
    return name.casefold().partition(".")[0] in _ADDED.names


def _tops(paths: Sequence[str], names: Sequence[str]) -> list[str]:
    """The columns that some paths lead into, each once, in their order."""
    longest = sorted(names, key=len, reverse=True)  # a name may have a dot in it
    return list(dict.fromkeys(next((n for n in longest if f"{path}.".startswith(f"{n}.")), path) for path in paths))


def made_by(rows: pa.Table, run_id: str) -> pa.Table:
    """Rows of the output's schema with the run that makes them."""
    place = rows.column_names.index("run_id")
    return rows.set_column(place, rows.schema.field(place), pa.repeat(pa.scalar(run_id), len(rows)))


@dataclass(frozen=True)
class ImageDetections:
    """What was found on one image, best score first; arrays of N.

    Attributes:
        boxes: [N, 4] x, y, width, height in pixels of the image.
        scores: [N] 0 to 1.
        labels: [N] index into the categories given to `detections_array`.
        areas: [N] pixels of the mask.
        image_size: (H, W) of the masks, in pixels.
        counts: N masks as COCO's compressed run lengths.
    """

    boxes: NDArray[Any]
    scores: NDArray[Any]
    labels: NDArray[Any]
    areas: NDArray[Any]
    image_size: tuple[int, int]
    counts: Sequence[bytes]


def detections_array(
    images: Sequence[ImageDetections | None], category_ids: Sequence[int], category_names: Sequence[str]
) -> pa.ListArray:
    """The ``detections`` column.

    Args:
        images: one entry per row; ``None`` for failed images, which have no list.
        category_ids: [K] id of the category that each label stands for.
        category_names: [K] its name.

    Raises:
        ValueError: an image's arrays differ in length.
    """
    for row, image in enumerate(images):
        lengths = (
            {len(image.scores), *map(len, (image.boxes, image.labels, image.areas, image.counts))} if image else ()
        )
        if len(lengths) > 1:
            raise ValueError(f"row {row}: boxes, scores, labels, areas and counts differ in length")
    found = [image for image in images if image is not None]
    lengths_by_row = np.array([0 if image is None else len(image.scores) for image in images], np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths_by_row)]).astype(np.int32)
    labels = _joined([image.labels for image in found], np.int64)
    sizes = np.array([image.image_size for image in found], np.int32).reshape(-1, 2)
    sizes = np.repeat(sizes, [len(image.scores) for image in found], axis=0)
    counts = pa.array(chain.from_iterable(image.counts for image in found), pa.string(), size=int(offsets[-1]))
    columns = [
        _fixed(_joined([image.boxes.reshape(-1) for image in found], np.float32), _BOX),
        pa.array(_joined([image.scores for image in found], np.float32)),
        pa.array(np.asarray(category_ids, np.int32)[labels]),
        pa.array(category_names, pa.string()).take(pa.array(labels)),
        pa.array(_joined([image.areas for image in found], np.float32)),
        pa.StructArray.from_arrays([_fixed(sizes.reshape(-1), _SIZE), counts], fields=list(SEGMENTATION)),
    ]
    detections = pa.StructArray.from_arrays(columns, fields=list(DETECTION))
    failed = pa.array([image is None for image in images], pa.bool_())
    return pa.ListArray.from_arrays(pa.array(offsets), detections, type=DETECTIONS, mask=failed)


def mask_column(segmentations: pa.StructArray, sizes: NDArray[np.integer]) -> RleColumn:
    """The masks of a ``segmentation`` column, checked: whoever reads what is in a file reads it by this.

    Args:
        segmentations: N of them.
        sizes: [N, 2] H and W of their images, in pixels.

    Raises:
        DamagedRle: of the first that is missing, of another size than its image, or no mask of it.
    """
    has_size = pc.and_(segmentations.is_valid(), segmentations.field("size").is_valid())
    if pc.index(has_size, False).as_py() >= 0:
        raise DamagedRle("it has no size", pc.index(has_size, False).as_py())
    own = segmentations.field("size").flatten().fill_null(0).to_numpy().reshape(-1, 2)
    others = (own != sizes).any(axis=1)
    if others.any():
        index = int(others.argmax())
        of, wanted = (" x ".join(map(str, size[index].tolist())) for size in (own, sizes))
        raise DamagedRle(f"it is of {of} (height x width), the image of {wanted}", index)
    return RleColumn.read(*_text_of(segmentations.field("counts").fill_null("")), sizes)


def _text_of(strings: pa.StringArray) -> tuple[bytes, NDArray[np.int32]]:
    """Strings one after the other, and where each begins [N + 1], the end of the last included."""
    _, offsets_buffer, data = strings.buffers()
    if not len(strings):
        return b"", np.zeros(1, np.int32)
    offsets = np.frombuffer(offsets_buffer, np.int32)[strings.offset : strings.offset + len(strings) + 1]
    return data.slice(int(offsets[0]), int(offsets[-1] - offsets[0])).to_pybytes(), offsets - offsets[0]


def _joined(parts: Sequence[NDArray[Any]], dtype: Any) -> NDArray[Any]:
    return np.concatenate([np.empty(0, dtype), *(part.astype(dtype, copy=False) for part in parts)])


def _fixed(values: NDArray[Any], list_type: pa.FixedSizeListType) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(values), type=list_type)
