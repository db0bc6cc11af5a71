"""Any manifest -> units that tasks read independently, with ids, absolute URIs and carried columns.

Parquet is read where it lies, a row group a unit. Everything else is first copied to Parquet in a scratch folder
(:mod:`pipeline.data.manifest_formats`), which on a cluster must be one that all nodes reach.

Whatever can be wrong with a manifest's rows, but for ids that occur twice
(:func:`pipeline.data.antijoin.find_pending` finds those), is found when it is opened: the URI column is read
once for that, the bytes are not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.data.manifest_formats import (
    BYTES,
    ID,
    IMAGE_SUFFIXES,
    PARQUET_SUFFIXES,
    URI,
    Columns,
    ManifestError,
    Normalised,
    ReadUnit,
    Spec,
    cannot_read,
    check_carry,
    check_ids,
    check_uris,
    find_columns,
    is_relative,
    list_files,
    plain_root,
    read_coco,
    read_csv,
    read_folder,
    read_jsonl,
    row_namer,
)
from pipeline.data.storage import open_filesystem
from pipeline.data.uris import UriError, join, redact, split_uri

__all__ = ["Manifest", "ManifestError", "ManifestSpec", "ReadUnit", "open_manifest"]

_READERS = {"csv": read_csv, "jsonl": read_jsonl, "coco": read_coco, "folder": read_folder}
_SUFFIXES = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "coco"} | dict.fromkeys(
    PARQUET_SUFFIXES, "parquet"
)
_COMPRESSIONS = (".gz", ".bz2", ".zst")
_NUM_THREADS = 8  # they wait for S3 most of the time
_STREAM_BUFFER_BYTES = 1 << 20


@dataclass(frozen=True)
class ManifestSpec:
    """Where the manifest is and how to read it.

    Attributes:
        uri: a file, or a folder of Parquet files or images; local, ``s3://``, or any fsspec scheme.
        format: ``parquet``, ``csv``, ``jsonl``, ``coco``, ``folder``, or ``auto``: by the suffix, and a folder
            by the first Parquet file or image in it.
        image_root: what relative URIs are relative to.
        id_column: unique integers or strings. If the manifest has no ``image_id``, the URI as it stands there
            is the id. COCO JSON: ``id`` by default. A folder has no columns.
        uri_column: absolute, or relative to the root. COCO JSON: ``file_name`` by default.
        bytes_column: encoded images in the manifest itself, Parquet only. A row with bytes needs no URI.
        carry: columns to copy into the output.
    """

    uri: str
    format: str = "auto"
    image_root: str | None = None
    id_column: str = ID
    uri_column: str = URI
    bytes_column: str = BYTES
    carry: tuple[str, ...] = ()


@dataclass(frozen=True)
class Manifest:
    """A checked manifest. Small and picklable: tasks on other machines read with it, with their own credentials.

    Attributes:
        uri: what it was opened from.
        units: all row groups that have rows, in the order of files and rows.
        columns: names in the units' files.
        id_type: ``int64`` or ``string``.
        carried: schema of the carried columns: the types of the source, but plain ones for its view types.
        image_root: what relative URIs are relative to.
    """

    uri: str
    units: tuple[ReadUnit, ...]
    columns: Columns
    id_type: pa.DataType
    carried: pa.Schema
    image_root: str | None

    @property
    def num_rows(self) -> int:
        """Images in the manifest."""
        return sum(unit.num_rows for unit in self.units)

    @property
    def has_bytes(self) -> bool:
        """Whether rows may bring their image along."""
        return self.columns.bytes is not None

    @property
    def schema(self) -> pa.Schema:
        """What :meth:`read_rows` yields."""
        fixed = [(ID, self.id_type), (URI, pa.string()), (BYTES, pa.binary())]
        return pa.schema([pa.field(*column) for column in fixed] + list(self.carried))

    def read_ids(self, unit: ReadUnit) -> pa.Array:
        """The ids of a unit's rows, of :attr:`id_type`; reads one column, all of it.

        Raises:
            ManifestError: a null or empty id, or the file is not what it was.
            OSError: it cannot be read; worth another try.
        """
        column = self.columns.id or self.columns.uri
        with _open_unit(unit) as file:
            table = file.read_row_group(unit.row_group, columns=[column])
            ids = table[column].cast(self.id_type).combine_chunks()
        check_ids(ids, _row_namer(unit))
        return ids

    def read_rows(
        self, unit: ReadUnit, rows: NDArray[np.bool_] | NDArray[np.integer], batch_rows: int = 1024
    ) -> Iterator[pa.Table]:
        """Stream some of a unit's rows, in their order, without holding more than two batches and a page of them.

        Args:
            unit: one of :attr:`units`.
            rows: a mask over the unit's rows, or ascending indices.
            batch_rows: rows a table; the last one may have fewer.

        Yields:
            Tables with :attr:`schema`: ``image_uri`` is absolute, or null; ``image_bytes`` is null where the
            image is to be fetched. A row may have both: the bytes are the image then.
        """
        chosen = _as_indices(rows, unit.num_rows)
        if not len(chosen):
            return
        waiting = self.schema.empty_table()
        start = 0
        with _open_unit(unit, stream=True) as file:
            batches = file.iter_batches(batch_size=batch_rows, row_groups=[unit.row_group], columns=self._column_names)
            for batch in batches:
                first, last = np.searchsorted(chosen, [start, start + batch.num_rows])
                if last > first:
                    some = _without_views(batch).take(pa.array(chosen[first:last] - start))
                    waiting = pa.concat_tables([waiting, self._finish(some)])
                if waiting.num_rows >= batch_rows:
                    yield waiting.slice(0, batch_rows).combine_chunks()
                    waiting = waiting.slice(batch_rows)
                start += batch.num_rows
                if last == len(chosen):
                    break
        if waiting.num_rows:
            yield waiting.combine_chunks()

    @property
    def _column_names(self) -> list[str]:
        names = (self.columns.id, self.columns.uri, self.columns.bytes, *self.carried.names)
        return list(dict.fromkeys(name for name in names if name is not None))

    def _finish(self, table: pa.Table) -> pa.Table:
        nulls = pa.nulls(table.num_rows)
        uris = table[self.columns.uri].cast(pa.string()).combine_chunks() if self.columns.uri else nulls
        contents = table[self.columns.bytes] if self.columns.bytes else nulls
        columns = {
            ID: table[self.columns.id] if self.columns.id else uris,
            URI: _absolute(uris, self.image_root),
            BYTES: contents,
            **{name: table[name] for name in self.carried.names},
        }
        arrays = [columns[field.name].cast(field.type) for field in self.schema]
        return pa.table(arrays, schema=self.schema)


def open_manifest(spec: Spec, scratch_uri: str) -> Manifest:
    """Find out what the manifest is, check it, and cut it into units.

    Args:
        spec: a :class:`ManifestSpec`, or a config with the same fields.
        scratch_uri: a folder for the Parquet copy of anything that is not Parquet, reachable by all tasks;
            files of an earlier copy are overwritten. Whoever calls this removes it when the run is over.

    Raises:
        ManifestError: the manifest cannot be used; the message says where and why.
    """
    check_carry(spec.carry)
    try:
        if spec.image_root:
            split_uri(join(spec.image_root, "x"))
        kind = spec.format if spec.format != "auto" else _guess_format(spec.uri)
        if kind == "parquet":
            manifest = _open_parquet(spec, scratch_uri)
        elif kind in _READERS:
            manifest = _from_copy(spec, _READERS[kind](spec, scratch_uri))
        else:
            formats = ", ".join(["auto", "parquet", *_READERS])
            raise ManifestError(f"manifest format {kind!r} is unknown; there are: {formats}")
    except UriError as error:
        raise ManifestError(f"manifest: {error}") from None
    if not manifest.num_rows:
        what = "no image" if kind == "folder" else "no row"
        raise ManifestError(f"{redact(spec.uri)} has {what}: there is nothing to do")
    return manifest


def _guess_format(uri: str) -> str:
    path = split_uri(uri).path.lower()
    for compression in _COMPRESSIONS:
        path = path.removesuffix(compression)
    for suffix, kind in _SUFFIXES.items():
        if path.endswith(suffix) and not _is_folder(uri):
            return kind
    if not _is_folder(uri):
        raise ManifestError(f"{redact(uri)}: its suffix does not tell its format; set the manifest's format")
    telling = (name.lower() for name in list_files(uri) if name.lower().endswith((*PARQUET_SUFFIXES, *IMAGE_SUFFIXES)))
    return "parquet" if next(telling, "").endswith(PARQUET_SUFFIXES) else "folder"


def _is_folder(uri: str) -> bool:
    filesystem, path = open_filesystem(uri)
    try:
        info = filesystem.get_file_info(path)
    except OSError as error:
        raise cannot_read(uri, error) from None
    if info.type == pafs.FileType.NotFound:
        raise ManifestError(f"{redact(uri)} does not exist")
    return info.type == pafs.FileType.Directory


def _from_copy(spec: Spec, copy: Normalised) -> Manifest:
    columns = Columns(ID if copy.has_ids else None, URI, None)
    return Manifest(spec.uri, copy.units, columns, copy.id_type, copy.carried, copy.image_root)


@dataclass(frozen=True)
class _Footer:
    """What a file's footer says, as far as the files of a manifest must agree; its units, and what needs a look.

    Attributes:
        units: with, for each, whether statistics say that all rows have an id, and that all have bytes.
    """

    uri: str
    columns: Columns
    id_type: pa.DataType
    carried: pa.Schema
    units: tuple[tuple[ReadUnit, bool, bool], ...]


def _open_parquet(spec: Spec, scratch_uri: str) -> Manifest:
    files = _parquet_files(spec, scratch_uri)
    if not files:
        raise ManifestError(f"{redact(spec.uri)} holds no Parquet file ({', '.join(PARQUET_SUFFIXES)})")
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        footers = list(pool.map(lambda file: _read_footer(spec, file), files))
        first = footers[0]
        for other in footers[1:]:
            _check_same(first, other)
        units = [unit for footer in footers for unit in footer.units]
        manifest = Manifest(
            spec.uri, tuple(unit for unit, *_ in units), first.columns, first.id_type, first.carried, spec.image_root
        )
        for _ in pool.map(lambda unit: _check_unit(manifest, *unit), units):
            pass  # but raise what was raised
    return manifest


def _parquet_files(spec: Spec, scratch_uri: str) -> list[str]:
    if not _is_folder(spec.uri):
        return [spec.uri]
    files = []
    root = plain_root(spec.uri)
    for name in list_files(spec.uri, scratch_uri):
        if name.lower().endswith(PARQUET_SUFFIXES):
            files.append(f"{root}/{name}")
        elif spec.format == "auto" and name.lower().endswith(IMAGE_SUFFIXES):
            raise ManifestError(f"{redact(spec.uri)} holds Parquet files and images: set the manifest's format")
    return files


def _read_footer(spec: Spec, uri: str) -> _Footer:
    try:
        with _open_file(uri) as file:
            schema, metadata = file.schema_arrow, file.metadata
    except (OSError, pa.ArrowInvalid) as error:
        raise cannot_read(uri, error) from None
    columns = find_columns(spec, schema.names, uri, bytes_allowed=True)
    id_type = _id_type(schema.field(columns.id), uri) if columns.id else pa.string()
    if columns.uri and not is_text(schema.field(columns.uri).type):
        raise _wrong_type(schema.field(columns.uri), uri, "image URIs must be strings")
    if columns.bytes and not _is_binary(schema.field(columns.bytes).type):
        raise _wrong_type(schema.field(columns.bytes), uri, "image bytes must be binary")
    units = []
    for index in range(metadata.num_row_groups):
        row_group = metadata.row_group(index)
        if row_group.num_rows:
            has_all_ids = _surely_filled(row_group, columns.id, empty_counts=False)
            has_all_bytes = _surely_filled(row_group, columns.bytes, empty_counts=True)
            units.append((ReadUnit(uri, index, row_group.num_rows), has_all_ids, has_all_bytes))
    # Without the files' own metadata on fields, which may differ from file to file.
    carried = pa.schema([(name, _without_view(schema.field(name).type)) for name in spec.carry])
    return _Footer(uri, columns, id_type, carried, tuple(units))


def _id_type(field: pa.Field, file: str) -> pa.DataType:
    if pa.types.is_integer(field.type):
        return pa.int64()
    if is_text(field.type):
        return pa.string()
    raise _wrong_type(field, file, "ids must be integers or strings")


def is_text(kind: pa.DataType) -> bool:
    """Whether values of an Arrow type are strings, in whichever encoding."""
    if pa.types.is_dictionary(kind):
        return is_text(kind.value_type)
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def _without_view(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_string_view(kind):
        return pa.string()
    return pa.binary() if pa.types.is_binary_view(kind) else kind


def _without_views(batch: pa.RecordBatch) -> pa.Table:
    """View types as the plain ones: Arrow cannot pick rows of them."""
    fields = [field.with_type(_without_view(field.type)) for field in batch.schema]
    return pa.Table.from_batches([batch]).cast(pa.schema(fields))


def _wrong_type(field: pa.Field, file: str, rule: str) -> ManifestError:
    return ManifestError(f"{redact(file)}, column {field.name!r}: {rule}, not {field.type}; cast the column")


def _check_same(first: _Footer, other: _Footer) -> None:
    where = f"{redact(other.uri)} differs from {redact(first.uri)}"
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


def _surely_filled(row_group: pq.RowGroupMetaData, name: str | None, empty_counts: bool) -> bool:
    """Whether the statistics say that no value is null, nor empty unless that counts as filled."""
    columns = (row_group.column(index) for index in range(row_group.num_columns))
    statistics = next((column.statistics for column in columns if column.path_in_schema == name), None)
    if statistics is None or not statistics.has_null_count or statistics.null_count:
        return False
    return empty_counts or (statistics.has_min_max and statistics.min not in ("", b""))


def _check_unit(manifest: Manifest, unit: ReadUnit, has_all_ids: bool, has_all_bytes: bool) -> None:
    """Refuse rows without an id or an image. Reads the URIs, and whatever the statistics leave open."""
    try:
        if not has_all_ids and (manifest.columns.id is not None or manifest.has_bytes):
            manifest.read_ids(unit)  # otherwise the URIs are the ids
        if has_all_bytes:
            return
        uris = _read_uris(manifest, unit)
        try:
            check_uris(uris, manifest.image_root, _row_namer(unit))
        except ManifestError:
            if not manifest.has_bytes:
                raise
            rows = _rows_without_bytes(manifest, unit)
            namer = _row_namer(unit)
            check_uris(uris.take(pa.array(rows)), manifest.image_root, lambda index: namer(rows[index]))
    except OSError as error:
        raise cannot_read(unit.file, error) from None


def _read_uris(manifest: Manifest, unit: ReadUnit) -> pa.Array:
    name = manifest.columns.uri
    if name is None:
        return pa.nulls(unit.num_rows, pa.string())
    with _open_unit(unit) as file:
        return file.read_row_group(unit.row_group, columns=[name])[name].cast(pa.string()).combine_chunks()


def _rows_without_bytes(manifest: Manifest, unit: ReadUnit) -> NDArray[np.int64]:
    masks = []
    with _open_unit(unit, stream=True) as file:
        for batch in file.iter_batches(256, row_groups=[unit.row_group], columns=[manifest.columns.bytes]):
            masks.append(batch[manifest.columns.bytes].is_null().to_numpy(zero_copy_only=False))
    return np.flatnonzero(np.concatenate(masks))


def _row_namer(unit: ReadUnit) -> Callable[[int], str]:
    return row_namer(unit.file, f"row group {unit.row_group}, row", range(1, unit.num_rows + 1))


def _open_file(uri: str, stream: bool = False) -> pq.ParquetFile:
    """``stream`` reads pages as they are needed; otherwise whole columns of a row group, in one request each."""
    filesystem, path = open_filesystem(uri)
    options: dict[str, Any] = {"pre_buffer": False, "buffer_size": _STREAM_BUFFER_BYTES} if stream else {}
    return pq.ParquetFile(path, filesystem=filesystem, **options)


@contextmanager
def _open_unit(unit: ReadUnit, stream: bool = False) -> Iterator[pq.ParquetFile]:
    """The unit's file, if it is still the one that was cut into units; what Arrow finds wrong with it, explained."""
    try:
        with _open_file(unit.file, stream) as file:
            metadata = file.metadata
            same = unit.row_group < metadata.num_row_groups
            if not same or metadata.row_group(unit.row_group).num_rows != unit.num_rows:
                raise ManifestError(f"{redact(unit.file)} has changed since the manifest was opened: start again")
            yield file
    except pa.ArrowInvalid as error:
        raise cannot_read(unit.file, error) from None


def _as_indices(rows: NDArray[np.bool_] | NDArray[np.integer], num_rows: int) -> NDArray[np.int64]:
    if rows.dtype == np.bool_:
        if len(rows) != num_rows:
            raise ValueError(f"a mask of {len(rows)} rows for a unit of {num_rows}")
        return np.flatnonzero(rows)
    indices = rows.astype(np.int64)
    if len(indices) and (indices[0] < 0 or indices[-1] >= num_rows or np.any(np.diff(indices) <= 0)):
        raise ValueError(f"row indices must ascend and lie within 0..{num_rows - 1}")
    return indices


def _absolute(uris: pa.Array, root: str | None) -> pa.Array:
    """Joined with the root. What cannot be joined is the label of a row with bytes, and stays as it is."""
    if not pc.any(is_relative(uris.cast(pa.string()))).as_py():
        return uris

    def join_one(uri: str | None) -> str | None:
        try:
            return join(root or "", uri) if uri else uri
        except UriError:
            return uri

    return pa.array([join_one(uri) for uri in uris.to_pylist()], pa.string())
