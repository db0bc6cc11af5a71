"""Parquet manifests: their files' footers compared, their rows checked. Each row group is a unit, where it lies."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.annotate.config import ManifestConfig
from pipeline.annotate.manifest.rules import (
    BYTES,
    URI,
    Columns,
    ManifestError,
    ManifestParts,
    ReadUnit,
    check_ids,
    check_uris,
    check_uris_as_ids,
    find_columns,
)
from pipeline.annotate.manifest.units import (
    open_file,
    open_unit,
    pick,
    read_column,
    read_id_column,
    read_statistics,
    surely_filled,
    unit_row_namer,
)
from pipeline.images.decode import IMAGE_SUFFIXES
from pipeline.messages.examples import Examples
from pipeline.storage.errors import StorageError, cannot_read, explained
from pipeline.storage.listing import PARQUET_SUFFIXES, is_folder, is_parquet, is_there, list_files
from pipeline.storage.uris import Uri
from pipeline.tables.arrow_types import is_binary, is_text, without_view

NUM_THREADS = 8  # they wait for S3 most of the time
# In tables of these formats the files alone do not tell which rows there are: removed ones lie beside those that count.
_TABLE_MARKS = (
    (
        "Delta",
        re.compile(r"(?:^|/)_delta_log/"),
        "name the folder that _delta_log is in, and set format: delta",
    ),
    (
        "Iceberg",
        re.compile(r"(?:^|/)metadata/[^/]*\.metadata\.json$"),
        "name iceberg://CATALOG/NAMESPACE.TABLE, or its current metadata file; set format: iceberg",
    ),
    (
        "Hudi",
        re.compile(r"(?:^|/)\.hoodie/"),
        "write the rows it has now to a folder of plain Parquet files, and name that",
    ),
)

logger = logging.getLogger(__name__)


def read_parquet(config: ManifestConfig, scratch_uri: Uri, outside: Collection[Uri] = ()) -> ManifestParts:
    """One Parquet file, or all below a folder, whose columns must agree; read where they lie.

    Nothing is written to ``scratch_uri``; it is left out if it lies in the folder, and so are those outside.
    """
    files = _parquet_files(config, (scratch_uri, *outside))
    if not files:
        raise ManifestError(f"{config.uri} holds no Parquet file ({', '.join(PARQUET_SUFFIXES)})")
    return read_files(config, files)


def read_files(config: ManifestConfig, files: Sequence[Uri]) -> ManifestParts:
    """Parquet files, at least one, whose columns must agree; read where they lie."""
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        footers = list(pool.map(lambda file: _read_footer(config, file), files))
        first = footers[0]
        for other in footers[1:]:
            _check_same(first, other)
        units = [unit for footer in footers for unit in footer.units]
        row_groups = tuple(unit for unit, *_ in units)
        opened = ManifestParts(row_groups, first.columns, first.id_type, first.carried, config.image_root)
        for _ in pool.map(lambda unit: _check_unit(opened, *unit), units):
            pass  # but raise what was raised
    return opened


def _parquet_files(config: ManifestConfig, outside: Collection[Uri]) -> list[Uri]:
    if not is_folder(config.uri):
        return [config.uri]
    files, passed_over = [], []
    root = config.uri.absolute()
    _refuse_table(config.uri, [".hoodie/"] if is_there(config.uri / ".hoodie") else [])  # hidden, so never listed
    for name, _ in list_files(config.uri, outside):
        _refuse_table(config.uri, [name])
        if is_parquet(name):
            files.append(root / _utf8(name, config.uri))
        elif name.lower().endswith(PARQUET_SUFFIXES):
            passed_over.append(name)
        elif config.format == "auto" and name.lower().endswith(IMAGE_SUFFIXES):
            raise ManifestError(f"{config.uri} holds Parquet files and images: set the manifest's format")
    if passed_over:
        examples = Examples.of(map(repr, passed_over))
        logger.warning("%s: files and folders that begin with '_' are no data: %s left out", config.uri, examples)
    return files


def _refuse_table(uri: Uri, names: list[str]) -> None:
    for name in names:
        for kind, mark, cure in _TABLE_MARKS:
            if mark.search(name):
                raise ManifestError(
                    f"{uri} is a {kind} table ({name!r}): its folder holds rows, too, that were removed from it; {cure}"
                )


def _utf8(name: str, uri: Uri) -> str:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ManifestError(f"{uri} holds a file whose name is not UTF-8: {name!r}; rename it") from None
    return name


@dataclass(frozen=True)
class _Footer:
    """What a file's footer says, as far as the files of a manifest must agree; its units, and what needs a look.

    Attributes:
        units: with, for each, whether statistics say that all rows have an id, and that all have bytes.
    """

    uri: Uri
    columns: Columns
    id_type: pa.DataType
    carried: pa.Schema
    units: tuple[tuple[ReadUnit, bool, bool], ...]


def _read_footer(config: ManifestConfig, uri: Uri) -> _Footer:
    try:
        with explained(uri), open_file(uri) as file:
            schema, metadata = file.schema_arrow, file.metadata
            num_rows = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
            statistics = read_statistics(uri)
    except (OSError, StorageError) as error:
        cure = ""
        if uri.is_http:
            cure = "; Parquet is read in ranges, which not every web server gives: try a copy on a disk or in a store"
        refused = error if isinstance(error, StorageError) else cannot_read(uri, error)
        raise StorageError(f"{refused}{cure}") from None
    if min(num_rows, default=0) < 0 or sum(num_rows) != metadata.num_rows or len(statistics) != len(num_rows):
        raise ManifestError(f"{uri} is damaged: its row groups have not the {metadata.num_rows} rows of the file")
    columns = _find_columns(config, schema, uri)
    id_type = _id_type(schema.field(columns.id), uri) if columns.id else pa.string()
    if columns.uri and not is_text(pick(schema.empty_table(), columns.uri).type):
        raise _wrong_type(schema.field(columns.uri), uri, "image URIs must be strings")
    if columns.bytes and not is_binary(pick(schema.empty_table(), columns.bytes).type):
        raise _wrong_type(schema.field(columns.bytes), uri, "image bytes must be binary")
    units = []
    for index, known in enumerate(statistics):
        if num_rows[index]:
            has_all_ids = columns.id is not None and surely_filled(known.get(columns.id), empty_counts=False)
            has_all_bytes = columns.bytes is not None and surely_filled(known.get(columns.bytes), empty_counts=True)
            units.append((ReadUnit(uri, index, num_rows[index]), has_all_ids, has_all_bytes))
    # Without the files' own metadata on fields, which may differ from file to file.
    carried = pa.schema([(name, without_view(schema.field(name).type)) for name in config.carry])
    return _Footer(uri, columns, id_type, carried, tuple(units))


def _find_columns(config: ManifestConfig, schema: pa.Schema, uri: Uri) -> Columns:
    """As `find_columns`; an image may also be a struct of bytes and path, as Hugging Face's datasets write it.

    It is the column that `bytes_column` names; or the only such one of a file that has no columns of the usual names.
    """
    structs = [field.name for field in schema if _is_image(field.type)]
    name = config.bytes_column
    if (config.uri_column, name) == (URI, BYTES) and not {URI, BYTES} & set(schema.names) and structs:
        if len(structs) > 1:
            raise ManifestError(
                f"{uri} has {len(structs)} columns of images ({', '.join(structs)}): set manifest.bytes_column to "
                "one of them"
            )
        name = structs[0]
    if name not in structs:
        return find_columns(config, schema.names, uri, bytes_allowed=True)
    path = f"{name}.path" if config.uri_column == URI and URI not in schema.names else config.uri_column
    described = config.model_copy(update={"bytes_column": f"{name}.bytes", "uri_column": path})
    return find_columns(described, [*schema.names, f"{name}.bytes", f"{name}.path"], uri, bytes_allowed=True)


def _is_image(kind: pa.DataType) -> bool:
    if not pa.types.is_struct(kind):
        return False
    fields = {field.name: field.type for field in kind}
    return fields.keys() == {"bytes", "path"} and is_binary(fields["bytes"]) and is_text(fields["path"])


def _id_type(field: pa.Field, file: Uri) -> pa.DataType:
    if pa.types.is_integer(field.type):
        return pa.int64()
    if is_text(field.type):
        return pa.string()
    raise _wrong_type(field, file, "ids must be integers or strings")


def _wrong_type(field: pa.Field, file: Uri, rule: str) -> ManifestError:
    cure = "name it as manifest.bytes_column" if _is_image(field.type) else "cast the column"
    return ManifestError(f"{file}, column {field.name!r}: {rule}, not {field.type}; {cure}")


def _check_same(first: _Footer, other: _Footer) -> None:
    where = f"{other.uri} differs from {first.uri}"
    for role in ("id", "uri", "bytes"):
        here, there = getattr(other.columns, role), getattr(first.columns, role)
        if here != there:
            raise ManifestError(f"{where}: column {here or there!r} is in one of them only; write all files alike")
    if other.id_type != first.id_type:
        raise ManifestError(f"{where}: ids are {other.id_type}, not {first.id_type}; write all files alike")
    for here, there in zip(other.carried, first.carried, strict=True):
        if here.type != there.type:
            raise ManifestError(
                f"{where}: column {here.name!r} is {here.type}, not {there.type}; write all files alike"
            )


def _check_unit(opened: ManifestParts, unit: ReadUnit, has_all_ids: bool, has_all_bytes: bool) -> None:
    """Refuse rows without an id or an image. Reads the URIs, and whatever the statistics leave open."""
    id_column, bytes_column, root = opened.columns.id, opened.columns.bytes, opened.image_root
    namer = unit_row_namer(unit)
    try:
        if id_column is not None and not has_all_ids:
            read_id_column(unit, id_column, opened.id_type)
        if id_column is not None and has_all_bytes:
            return
        uris = _read_uris(unit, opened.columns.uri)
        if id_column is None:
            if bytes_column is not None:  # otherwise no URI may be null anyway
                check_ids(uris, namer, "without a column of ids its path or URI is the id: set manifest.id_column")
            check_uris_as_ids(uris, root, namer)
        if has_all_bytes:
            return
        try:
            check_uris(uris, root, namer)
        except ManifestError:
            if bytes_column is None:
                raise
            rows = _rows_without_bytes(unit, bytes_column)
            check_uris(uris.take(pa.array(rows)), root, lambda index: namer(rows[index]))
    except OSError as error:
        raise cannot_read(unit.file, error) from None


def _read_uris(unit: ReadUnit, column: str | None) -> pa.Array:
    if column is None:
        return pa.nulls(unit.num_rows, pa.string())
    with open_unit(unit) as file:
        return read_column(file, unit, column, pa.string())


def _rows_without_bytes(unit: ReadUnit, column: str) -> NDArray[np.int64]:
    masks = []
    with open_unit(unit, stream=True) as file:
        for batch in file.iter_batches(256, row_groups=[unit.row_group], columns=[column]):
            masks.append(pick(batch, column).is_null().to_numpy(zero_copy_only=False))
    return np.flatnonzero(np.concatenate(masks))
