"""JSON Lines and COCO JSON manifests.

Ids are integers or strings, the same throughout. A carried column gets the type that holds all its values; one
without any value is text. COCO JSON is one value and is parsed whole (two to three times the file's size;
annotations are dropped as they are parsed).
"""

from __future__ import annotations

import codecs
import io
import json
from collections.abc import Callable, Iterator
from itertools import chain, islice
from typing import Any

import pyarrow as pa

from pipeline.annotate.config import ManifestConfig
from pipeline.annotate.manifest.parquet_copy import ROW_GROUP_ROWS, UnitWriter
from pipeline.annotate.manifest.rules import (
    HEIGHT,
    ID,
    NUMBER,
    URI,
    WIDTH,
    Columns,
    ManifestError,
    ManifestParts,
    check_uris,
    check_uris_as_ids,
    find_columns,
    missing_column,
    row_namer,
    side_lengths,
)
from pipeline.annotate.manifest.versions import COPIED, named_by_user, untyped_column, version_sources, version_table
from pipeline.storage.streams import open_stream
from pipeline.storage.uris import Uri, hide_column

_JSONL_BUFFER_BYTES = 1 << 20
_ANNOTATION_KEYS = {"image_id", "category_id"}


def read_jsonl(config: ManifestConfig, scratch_uri: Uri) -> ManifestParts:
    """One JSON object a line, UTF-8, perhaps compressed; blank lines are skipped, absent keys are null."""
    records = _jsonl_records(config.uri)
    first = next(records, None)
    if first is None:
        raise ManifestError(f"{config.uri} is empty")
    columns = find_columns(config, first[1], config.uri, check_carried=False)
    return _write_records(chain([first], records), config, columns, "line", scratch_uri)


def read_coco(config: ManifestConfig, scratch_uri: Uri) -> ManifestParts:
    """The ``images`` of a COCO JSON file: ``id`` and ``file_name``, unless the description names other keys."""
    images = _coco_images(config.uri)
    id_key = "id" if config.id_column == ID else config.id_column
    uri_key = "file_name" if config.uri_column == URI else config.uri_column
    for name in (id_key, uri_key):
        if images and name not in images[0]:
            raise missing_column(name, images[0], f"images[] of {config.uri}")
    records = ((number, image) for number, image in enumerate(images, start=1))
    return _write_records(records, config, Columns(id_key, uri_key, None), "image", scratch_uri)


def _jsonl_records(uri: Uri) -> Iterator[tuple[int, dict[str, Any]]]:
    with open_stream(uri) as stream:
        for number, line in enumerate(io.BufferedReader(stream, _JSONL_BUFFER_BYTES), start=1):
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ManifestError(f"{uri}, line {number}: not JSON: {_why_not_json(error)}") from None
            if not isinstance(record, dict):
                raise ManifestError(f"{uri}, line {number}: a {type(record).__name__}, not an object")
            yield number, record


def _why_not_json(error: Exception) -> str:
    """Without the text: it may hold secrets."""
    if isinstance(error, json.JSONDecodeError):
        return error.msg
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return "not UTF-8" if isinstance(error, UnicodeDecodeError) else "a number of too many digits"


def _coco_images(uri: Uri) -> list[dict[str, Any]]:
    def without_annotations(value: dict[str, Any]) -> dict[str, Any] | None:
        return None if value.keys() >= _ANNOTATION_KEYS else value

    with open_stream(uri) as stream:
        text = stream.read()
    try:
        content = json.loads(text, object_hook=without_annotations)
    except (ValueError, RecursionError) as error:
        where = f", line {error.lineno}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        raise ManifestError(f"{uri} is not JSON: {_why_not_json(error)}{where}") from None
    images = content.get("images") if isinstance(content, dict) else None
    if images is None and isinstance(content, dict) and "sourceBucket" in content:
        raise ManifestError(f"{uri} is an S3 Inventory: set manifest.format: inventory")
    if not isinstance(images, list) or not all(isinstance(image, dict) for image in images):
        raise ManifestError(f"{uri} is not COCO JSON: it has no list 'images'; for one object a line set format: jsonl")
    return images


def _write_records(
    records: Iterator[tuple[int, dict[str, Any]]],
    config: ManifestConfig,
    columns: Columns,
    row_word: str,
    scratch_uri: Uri,
) -> ManifestParts:
    """Records of unknown types, with their numbers for messages -> Parquet."""
    carried = pa.schema([(name, pa.null()) for name in config.carry])
    id_type: pa.DataType | None = None if columns.id is not None else pa.string()
    uri_key = columns.uri or URI
    sources, needed, seen = version_sources(config), (*config.carry, *named_by_user(config)), set[str]()
    with UnitWriter(scratch_uri) as writer:
        while chunk := list(islice(records, ROW_GROUP_ROWS)):
            numbers = [number for number, _ in chunk]
            rows = [record for _, record in chunk]
            namer = row_namer(config.uri, row_word, numbers)
            arrays = {NUMBER: pa.array(numbers, pa.int64())}
            if columns.id is None and any(config.id_column in row for row in rows):
                index = next(index for index, row in enumerate(rows) if config.id_column in row)
                raise ManifestError(f"{namer(index)}: it has an id ({config.id_column!r}), rows before it have none")
            if columns.id is not None:
                arrays[ID] = _typed_ids([row.get(columns.id) for row in rows], id_type, namer)
                id_type = arrays[ID].type
            arrays[URI] = _texts([row.get(uri_key) for row in rows], uri_key, namer)
            check_uris(arrays[URI], config.image_root, namer)
            if columns.id is None:
                check_uris_as_ids(arrays[URI], config.image_root, namer)
            for name in config.carry:
                values = hide_column(arrays[URI]).to_pylist() if name == uri_key else [row.get(name) for row in rows]
                arrays[name] = _guess_type(values, name, namer)
            for name in (HEIGHT, WIDTH):
                arrays[name] = side_lengths(pa.array([_number(row.get(name)) for row in rows], pa.float64()))
            told = {name: untyped_column(row.get(source) for row in rows) for name, source in sources.items()}
            versions = version_table(told, len(rows))
            arrays |= {name: versions[name] for name in versions.column_names}
            seen.update(name for name in needed if any(name in row for row in rows))
            table = pa.table(arrays)
            carried = _unify(carried, table.select(list(config.carry)).schema, namer)
            writer.write(table)
            last = rows[-1]
    for name in needed:
        if writer.units and name not in seen:
            raise missing_column(name, last, config.uri)
    carried = pa.schema(
        [(field.name, pa.string() if pa.types.is_null(field.type) else field.type) for field in carried]
    )
    written = Columns(ID if columns.id is not None else None, URI, None, NUMBER, COPIED)
    return ManifestParts(writer.units, written, id_type or pa.string(), carried, config.image_root, row_word)


def _typed_ids(values: list[Any], expected: pa.DataType | None, name_row: Callable[[int], str]) -> pa.Array:
    """Integers or strings, all of one type, and of the type that came before."""
    types = {int: pa.int64(), str: pa.string()}
    expected = expected or types.get(type(values[0]))
    for index, value in enumerate(values):
        if value is None or value == "":
            raise ManifestError(f"{name_row(index)}: the id is null or empty; give the row an id or remove it")
        if types.get(type(value)) != expected or expected is None:
            wanted = f"an integer or a string, not {type(value).__name__}"
            if expected is not None:
                wanted = f"of one type throughout: {type(value).__name__} here, {expected} before"
            raise ManifestError(f"{name_row(index)}: ids must be {wanted}")
    try:
        return pa.array(values, expected)
    except (pa.ArrowInvalid, OverflowError):
        index = next(index for index, value in enumerate(values) if not -(1 << 63) <= value < 1 << 63)
        raise ManifestError(f"{name_row(index)}: the id does not fit 64 bits; write it as a string") from None
    except UnicodeEncodeError:
        raise ManifestError(f"{name_row(_lone_surrogate(values))}: the id is not valid Unicode") from None


def _texts(values: list[Any], column: str, name_row: Callable[[int], str]) -> pa.Array:
    for index, value in enumerate(values):
        if value is not None and not isinstance(value, str):
            raise ManifestError(f"{name_row(index)}: {column!r} must be a string, not {type(value).__name__}")
    try:
        return pa.array(values, pa.string())
    except UnicodeEncodeError:
        raise ManifestError(f"{name_row(_lone_surrogate(values))}: {column!r} is not valid Unicode") from None


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and abs(value) < 1 << 53 else None


def _lone_surrogate(values: list[Any]) -> int:
    return next(i for i, value in enumerate(values) if value and value.encode(errors="replace").decode() != value)


def _guess_type(values: list[Any], column: str, name_row: Callable[[int], str]) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowException, UnicodeEncodeError, OverflowError):
        names = sorted({type(value).__name__ for value in values if value is not None})
        raise ManifestError(
            f"{name_row(0)} to {name_row(len(values) - 1)}: {column!r} holds values that no one type can hold "
            f"({', '.join(names)}); write them in one way or do not carry the column"
        ) from None


def _unify(before: pa.Schema, now: pa.Schema, name_row: Callable[[int], str]) -> pa.Schema:
    try:
        return pa.unify_schemas([before, now], promote_options="permissive")
    except pa.ArrowException as error:
        raise ManifestError(f"from {name_row(0)} on, a carried column changes its type: {error}") from None
