"""CSV, JSON Lines, COCO JSON and folders of images -> Parquet that many processes can read at once.

Each reader passes once over its source and writes ``image_uri`` as it stands there, ``image_id`` where the
source has one, and the carried columns, to Parquet files in the scratch folder. Memory is bounded by a row
group, with two exceptions: COCO JSON is one value and is parsed whole (two to three times the file's size;
annotations are dropped as they are parsed), and file systems other than local and S3 list a folder at once.

What a value's type is:

- CSV has no types: every column arrives as text, verbatim. Ids become integers only if each one is written as
  ``str(int(id))`` would write it; a single ``0012`` or ``a7`` keeps them all text.
- JSON ids are integers or strings, the same throughout. A carried column gets the type that holds all its
  values; one without any value is text.
"""

from __future__ import annotations

import codecs
import io
import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from pipeline.data.storage import open_filesystem, s3_environment
from pipeline.data.uris import UriError, join, redact, split_uri

ID, URI, BYTES = "image_id", "image_uri", "image_bytes"
RESERVED_COLUMNS = frozenset(
    {ID, URI, BYTES, "height", "width", "detections", "status", "stage", "error_code", "error_message"}
    | {"exif_orientation", "stored_height", "stored_width"}
)
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm")
PARQUET_SUFFIXES = (".parquet", ".pq")
ROW_GROUP_ROWS = 50_000
ROW_GROUPS_PER_FILE = 20  # whoever reads one row group reads the file's whole footer
_CSV_BLOCK_BYTES = 2 << 20  # pyarrow reads up to 32 of them ahead
_JSONL_BUFFER_BYTES = 1 << 20
_ANNOTATION_KEYS = {"image_id", "category_id"}
_CANONICAL_INTEGER = r"^(0|-?[1-9][0-9]{0,17})$"


class ManifestError(ValueError):
    """A manifest that cannot be used. The message names file, row or column and says what to do; redacted."""


class Spec(Protocol):
    """What a manifest's description holds; :class:`pipeline.data.manifest.ManifestSpec` says what it means."""

    @property
    def uri(self) -> str: ...
    @property
    def format(self) -> str: ...
    @property
    def image_root(self) -> str | None: ...
    @property
    def id_column(self) -> str: ...
    @property
    def uri_column(self) -> str: ...
    @property
    def bytes_column(self) -> str: ...
    @property
    def carry(self) -> Collection[str]: ...


@dataclass(frozen=True)
class ReadUnit:
    """What one task reads: a row group of a Parquet file."""

    file: str
    row_group: int
    num_rows: int


@dataclass(frozen=True)
class Columns:
    """Names in the source; ``None`` where it has no such column."""

    id: str | None
    uri: str | None
    bytes: str | None


@dataclass(frozen=True)
class Normalised:
    """What a reader made of its source.

    Attributes:
        has_ids: whether ``image_id`` was written; ids are the URIs otherwise.
        carried: the carried columns; single files may hold narrower types that cast to these.
        image_root: what relative URIs are relative to.
    """

    units: tuple[ReadUnit, ...]
    has_ids: bool
    id_type: pa.DataType
    carried: pa.Schema
    image_root: str | None


def find_columns(
    spec: Spec, available: Iterable[str], file: str, *, bytes_allowed: bool = False, check_carried: bool = True
) -> Columns:
    """Match the description with the columns that a file has.

    A column with its default name may be missing; one that was named by the user may not.

    Raises:
        ManifestError: a column is missing or there twice.
    """
    names = list(available)

    def find(name: str, default: str) -> str | None:
        if name in names:
            return name
        if name != default:
            raise missing_column(name, names, file)
        return None

    if not bytes_allowed and spec.bytes_column != BYTES:
        raise ManifestError(f"{redact(file)}: image bytes ({spec.bytes_column!r}) are read from Parquet only")
    bytes_column = find(spec.bytes_column, BYTES) if bytes_allowed else None
    columns = Columns(find(spec.id_column, ID), find(spec.uri_column, URI), bytes_column)
    if columns.uri is None and columns.bytes is None:
        raise missing_column(spec.uri_column, names, file)
    if columns.uri is None and columns.id is None:
        raise missing_column(spec.id_column, names, file)
    for name in (columns.id, columns.uri, columns.bytes, *(spec.carry if check_carried else ())):
        if name is not None and name not in names:
            raise missing_column(name, names, file)
        if name is not None and names.count(name) > 1:
            raise ManifestError(f"{redact(file)} has {names.count(name)} columns named {name!r}: rename one")
    return columns


def check_carry(carry: Collection[str]) -> None:
    """Refuse carried columns that the output could not hold under their names."""
    for name in carry:
        if name in RESERVED_COLUMNS:
            raise ManifestError(f"column {name!r} cannot be carried: the output has its own; rename it in the manifest")
    if len(set(carry)) < len(carry):
        raise ManifestError(f"carried columns are named twice: {', '.join(carry)}")


def check_ids(ids: pa.Array, name_row: Callable[[int], str]) -> None:
    """Refuse null and empty ids; ``name_row`` gives an index in the array its name in the message."""
    unusable = pc.is_null(ids)
    if not pa.types.is_integer(ids.type):
        unusable = pc.or_(unusable, pc.fill_null(pc.equal(pc.binary_length(ids), 0), True))
    index = pc.index(unusable, True).as_py()
    if index >= 0:
        raise ManifestError(f"{name_row(index)}: the id is null or empty; give the row an id or remove it")


def check_uris(uris: pa.Array, root: str | None, name_row: Callable[[int], str]) -> None:
    """Refuse URIs that no image can be read from: null, empty, relative without a root, out of the root."""
    missing = pc.fill_null(pc.equal(pc.binary_length(uris), 0), True)
    index = pc.index(missing, True).as_py()
    if index >= 0:
        raise ManifestError(f"{name_row(index)}: the image URI is null or empty; fill it in or remove the row")
    relative = np.flatnonzero(is_relative(uris).to_numpy(zero_copy_only=False))
    if root and len(relative):
        relative = relative[pc.match_substring(uris.take(pa.array(relative)), "..").to_numpy(zero_copy_only=False)]
    for index in relative.tolist():
        try:
            join(root or "", uris[index].as_py())
        except UriError as error:
            raise ManifestError(f"{name_row(index)}: {error}{'' if root else '; set image_root'}") from None


def is_relative(uris: pa.Array) -> pa.BooleanArray:
    """Which URIs are relative; null stays null."""
    return pc.invert(pc.or_(pc.starts_with(uris, "/"), pc.match_substring(uris, "://")))


class UnitWriter:
    """Tables of any length -> Parquet files of even row groups; a context manager.

    A table whose schema differs from the one before starts a file of its own.
    """

    def __init__(self, scratch_uri: str) -> None:
        self._uri = scratch_uri.rstrip("/")
        self._filesystem, self._path = open_filesystem(scratch_uri)
        self._writer: pq.ParquetWriter | None = None
        self._waiting: list[pa.Table] = []
        self._num_waiting = 0
        self._num_files = 0
        self._row_group = 0
        self._units: list[ReadUnit] = []

    @property
    def units(self) -> tuple[ReadUnit, ...]:
        """All row groups; after the context has ended."""
        return tuple(self._units)

    def __enter__(self) -> UnitWriter:
        if split_uri(self._uri).scheme != "s3":  # which has no directories, only objects named like them
            self._filesystem.create_dir(self._path, recursive=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._flush()
        self._close()

    def write(self, table: pa.Table) -> None:
        """Append rows; they reach the file by and by."""
        if self._waiting and self._waiting[0].schema != table.schema:
            self._flush()
        self._waiting.append(table)
        self._num_waiting += table.num_rows
        while self._num_waiting >= ROW_GROUP_ROWS:
            waiting = pa.concat_tables(self._waiting)
            self._write_row_group(waiting.slice(0, ROW_GROUP_ROWS))
            self._waiting = [waiting.slice(ROW_GROUP_ROWS)]
            self._num_waiting -= ROW_GROUP_ROWS

    def _flush(self) -> None:
        if self._num_waiting:
            self._write_row_group(pa.concat_tables(self._waiting))
        self._waiting, self._num_waiting = [], 0

    def _write_row_group(self, table: pa.Table) -> None:
        if self._writer is None or self._row_group == ROW_GROUPS_PER_FILE or self._writer.schema != table.schema:
            self._close()
            path = f"{self._path}/{self._name()}"
            self._writer = pq.ParquetWriter(path, table.schema, filesystem=self._filesystem, compression="zstd")
        self._writer.write_table(table, row_group_size=ROW_GROUP_ROWS)
        self._units.append(ReadUnit(f"{self._uri}/{self._name()}", self._row_group, table.num_rows))
        self._row_group += 1

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
            self._num_files += 1
            self._row_group = 0

    def _name(self) -> str:
        return f"manifest-{self._num_files:05d}.parquet"


def read_csv(spec: Spec, scratch_uri: str) -> Normalised:
    """A CSV file with a header, comma-separated, UTF-8, perhaps compressed (``.gz``, ``.zst``, ``.bz2``)."""
    with _open_csv(spec.uri, []) as header:
        columns = find_columns(spec, header.schema.names, spec.uri)
    wanted = list(dict.fromkeys(name for name in (columns.id, columns.uri, *spec.carry) if name is not None))
    num_rows, all_integers = 0, columns.id is not None
    with UnitWriter(scratch_uri) as writer, _open_csv(spec.uri, wanted) as batches:
        for batch in batches:
            table = _canonical(pa.Table.from_batches([batch]), columns, spec.carry)
            namer = row_namer(spec.uri, "row", range(num_rows + 1, num_rows + 1 + table.num_rows))
            check_uris(table[URI].combine_chunks(), spec.image_root, namer)
            if columns.id is not None:
                check_ids(table[ID].combine_chunks(), namer)
                all_integers = all_integers and _are_canonical_integers(table[ID])
            num_rows += table.num_rows
            writer.write(table)
    id_type = pa.int64() if all_integers else pa.string()
    carried = pa.schema([(name, pa.string()) for name in spec.carry])
    return Normalised(writer.units, columns.id is not None, id_type, carried, spec.image_root)


def read_jsonl(spec: Spec, scratch_uri: str) -> Normalised:
    """One JSON object a line, UTF-8, perhaps compressed; blank lines are skipped, absent keys are null."""
    records = _jsonl_records(spec.uri)
    first = next(records, None)
    if first is None:
        raise ManifestError(f"{redact(spec.uri)} is empty")
    columns = find_columns(spec, first[1], spec.uri, check_carried=False)
    return _write_records(chain([first], records), spec, columns, "line", scratch_uri)


def read_coco(spec: Spec, scratch_uri: str) -> Normalised:
    """The ``images`` of a COCO JSON file: ``id`` and ``file_name``, unless the description names other keys."""
    images = _coco_images(spec.uri)
    id_key = "id" if spec.id_column == ID else spec.id_column
    uri_key = "file_name" if spec.uri_column == URI else spec.uri_column
    for name in (id_key, uri_key):
        if images and name not in images[0]:
            raise missing_column(name, images[0], f"images[] of {redact(spec.uri)}")
    records = ((number, image) for number, image in enumerate(images, start=1))
    return _write_records(records, spec, Columns(id_key, uri_key, None), "image", scratch_uri)


def read_folder(spec: Spec, scratch_uri: str) -> Normalised:
    """All images below a folder or prefix, in the order of their paths; the ids are the paths in the folder.

    Told by their suffixes. Hidden files and folders are skipped, and so is the scratch folder.
    """
    root = plain_root(spec.uri)
    if spec.carry:
        raise ManifestError(f"{redact(spec.uri)} is a folder of images: it has no columns to carry")
    if spec.image_root and plain_root(spec.image_root) != root:
        raise ManifestError("image_root has no meaning for a folder of images: leave it out")
    images = _only_images(list_files(spec.uri, scratch_uri), spec)
    with UnitWriter(scratch_uri) as writer:
        while chunk := list(islice(images, ROW_GROUP_ROWS)):
            writer.write(pa.table({URI: pa.array(chunk, pa.string())}))
    return Normalised(writer.units, False, pa.string(), pa.schema([]), root)


def _only_images(paths: Iterator[str], spec: Spec) -> Iterator[str]:
    for path in paths:
        if path.lower().endswith(IMAGE_SUFFIXES):
            yield path
        elif spec.format == "auto" and path.lower().endswith(PARQUET_SUFFIXES):
            raise ManifestError(f"{redact(spec.uri)} holds Parquet files and images: set the manifest's format")


def list_files(uri: str, scratch_uri: str | None = None) -> Iterator[str]:
    """The files below a folder or prefix, as paths relative to it, in the order of their code points.

    Symbolic links are followed, but not round in circles.

    Args:
        uri: the folder.
        scratch_uri: left out if it lies in the folder.

    Raises:
        ManifestError: the folder cannot be listed, or a name is not UTF-8.
    """
    filesystem, path = open_filesystem(uri)
    scheme = split_uri(uri).scheme
    scratch = None
    if scratch_uri is not None and split_uri(scratch_uri).scheme == scheme:
        scratch = open_filesystem(scratch_uri)[1].rstrip("/") + "/"
    try:
        if scheme == "file":
            found = _walk(path, "", ())
        elif scheme == "s3":
            found = _list_s3(path)
        else:
            found = _list_at_once(filesystem, path)
        for relative in found:
            is_scratch = scratch is not None and f"{path}/{relative}".startswith(scratch)
            if not is_scratch and not relative.startswith(".") and "/." not in relative:
                relative.encode()
                yield relative
    except OSError as error:
        raise cannot_read(uri, error) from None
    except UnicodeEncodeError as error:
        raise ManifestError(f"{redact(uri)} holds a name that is not UTF-8: {error.object!r}; rename it") from None


def _walk(path: str, prefix: str, ancestors: tuple[tuple[int, int], ...]) -> Iterator[str]:
    status = os.stat(path)
    here = (status.st_dev, status.st_ino)
    if here in ancestors:
        return
    with os.scandir(path) as listed:
        # A folder sorts as "name/": then the whole walk is in the order of full paths.
        entries = sorted((entry.name + "/" if entry.is_dir() else entry.name) for entry in listed)
    for name in entries:
        if name.startswith("."):
            continue
        if name.endswith("/"):
            yield from _walk(os.path.join(path, name), prefix + name, (*ancestors, here))
        else:
            yield prefix + name


def _list_s3(path: str) -> Iterator[str]:
    # botocore hands out a page at a time, in the order of the keys, takes keys literally, and retries;
    # pyarrow would hold all of them at once, obstore refuses keys with an empty segment.
    import botocore.session  # type: ignore[import-untyped]  # slow to import; comes with s3fs
    from botocore import UNSIGNED
    from botocore.config import Config  # type: ignore[import-untyped]
    from botocore.exceptions import BotoCoreError, ClientError  # type: ignore[import-untyped]

    bucket, _, prefix = path.partition("/")
    prefix = f"{prefix}/" if prefix else ""
    environment = s3_environment(bucket)
    options: dict[str, Any] = {"signature_version": UNSIGNED} if environment.anonymous else {}
    config = Config(retries={"mode": "standard", "max_attempts": 5}, connect_timeout=5, read_timeout=30, **options)
    try:
        client = botocore.session.Session().create_client(
            "s3", region_name=environment.region, endpoint_url=environment.endpoint, config=config
        )
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            for entry in page.get("Contents", ()):
                if not entry["Key"].endswith("/"):
                    yield entry["Key"][len(prefix) :]
    except (BotoCoreError, ClientError) as error:
        raise ManifestError(f"s3://{redact(path)} cannot be listed: {error}") from None


def _list_at_once(filesystem: pafs.FileSystem, path: str) -> Iterator[str]:
    found = filesystem.get_file_info(pafs.FileSelector(path, recursive=True))
    base = path.rstrip("/") + "/"
    yield from sorted(info.path.removeprefix(base) for info in found if info.type == pafs.FileType.File)


def plain_root(uri: str) -> str:
    """Without trailing slashes; a ``file://`` URI as a path, so that names with ``%`` can be appended."""
    location = split_uri(uri)
    return os.path.abspath(location.path) if location.scheme == "file" else uri.rstrip("/")


def cannot_read(uri: str, error: Exception) -> ManifestError:
    """The reason why a file could not be read, redacted."""
    reason = str(error).replace(uri, redact(uri))
    return ManifestError(f"{redact(uri)} cannot be read: {type(error).__name__}: {reason}")


def missing_column(name: str, available: Iterable[str], file: str) -> ManifestError:
    """What to say when a column is not there."""
    return ManifestError(f"{redact(file)} has no column {name!r}; it has: {', '.join(available) or 'none'}")


@contextmanager
def _open_csv(uri: str, columns: list[str]) -> Iterator[pacsv.CSVStreamingReader]:
    """Batches of text columns; all columns, of guessed types, if none are named."""
    bad_rows: list[pacsv.InvalidRow] = []

    def note(row: pacsv.InvalidRow) -> str:
        bad_rows.append(row)
        return "error"

    try:
        with _open_stream(uri) as stream:
            reader = pacsv.open_csv(
                stream,
                # Threads would cost the row numbers in messages.
                read_options=pacsv.ReadOptions(block_size=_CSV_BLOCK_BYTES, use_threads=False),
                # RFC 4180 allows line breaks in quoted fields.
                parse_options=pacsv.ParseOptions(newlines_in_values=True, invalid_row_handler=note),
                convert_options=pacsv.ConvertOptions(
                    include_columns=columns, column_types=dict.fromkeys(columns, pa.string())
                ),
            )
            with reader:
                yield reader
    except pa.ArrowInvalid as error:
        if bad_rows:  # pyarrow's own message would repeat the row's text
            row = bad_rows[0]
            raise ManifestError(
                f"{redact(uri)}, row {row.number - 1}: {row.actual_columns} fields instead of "
                f"{row.expected_columns}; put fields that hold commas in quotes"
            ) from None
        if "Empty CSV" in str(error):
            raise ManifestError(f"{redact(uri)} is empty") from None
        raise cannot_read(uri, error) from None


@contextmanager
def _open_stream(uri: str) -> Iterator[pa.NativeFile]:
    try:
        filesystem, path = open_filesystem(uri)
        stream = filesystem.open_input_stream(path, compression="detect")
    except OSError as error:
        raise cannot_read(uri, error) from None
    with stream:
        yield stream


def _jsonl_records(uri: str) -> Iterator[tuple[int, dict[str, Any]]]:
    with _open_stream(uri) as stream:
        for number, line in enumerate(io.BufferedReader(stream, _JSONL_BUFFER_BYTES), start=1):
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as error:
                reason = error.msg if isinstance(error, json.JSONDecodeError) else "not UTF-8"
                raise ManifestError(f"{redact(uri)}, line {number}: not JSON: {reason}") from None
            if not isinstance(record, dict):
                raise ManifestError(f"{redact(uri)}, line {number}: a {type(record).__name__}, not an object")
            yield number, record


def _coco_images(uri: str) -> list[dict[str, Any]]:
    def without_annotations(value: dict[str, Any]) -> dict[str, Any] | None:
        return None if value.keys() >= _ANNOTATION_KEYS else value

    with _open_stream(uri) as stream:
        try:
            content = json.loads(stream.read(), object_hook=without_annotations)
        except ValueError as error:
            raise ManifestError(f"{redact(uri)} is not JSON: {error}") from None
    images = content.get("images") if isinstance(content, dict) else None
    if not isinstance(images, list) or not all(isinstance(image, dict) for image in images):
        raise ManifestError(
            f"{redact(uri)} is not COCO JSON: it has no list 'images'; for one object a line set format: jsonl"
        )
    return images


def _write_records(
    records: Iterator[tuple[int, dict[str, Any]]], spec: Spec, columns: Columns, row_word: str, scratch_uri: str
) -> Normalised:
    """Records of unknown types, with their numbers for messages -> Parquet."""
    carried = pa.schema([(name, pa.null()) for name in spec.carry])
    id_type: pa.DataType | None = None if columns.id is not None else pa.string()
    uri_key = columns.uri or URI
    seen: set[str] = set()
    with UnitWriter(scratch_uri) as writer:
        while chunk := list(islice(records, ROW_GROUP_ROWS)):
            numbers = [number for number, _ in chunk]
            rows = [record for _, record in chunk]
            namer = row_namer(spec.uri, row_word, numbers)
            arrays = {}
            if columns.id is None and any(spec.id_column in row for row in rows):
                index = next(index for index, row in enumerate(rows) if spec.id_column in row)
                raise ManifestError(f"{namer(index)}: it has an id ({spec.id_column!r}), rows before it have none")
            if columns.id is not None:
                arrays[ID] = _typed_ids([row.get(columns.id) for row in rows], id_type, namer)
                id_type = arrays[ID].type
            arrays[URI] = _texts([row.get(uri_key) for row in rows], uri_key, namer)
            check_uris(arrays[URI], spec.image_root, namer)
            for name in spec.carry:
                arrays[name] = _guess_type([row.get(name) for row in rows], name, namer)
            seen.update(name for name in spec.carry if any(name in row for row in rows))
            table = pa.table(arrays)
            carried = _unify(carried, table.select(list(spec.carry)).schema, namer)
            writer.write(table)
            last = rows[-1]
    for name in spec.carry:
        if writer.units and name not in seen:
            raise missing_column(name, last, spec.uri)
    carried = pa.schema(
        [(field.name, pa.string() if pa.types.is_null(field.type) else field.type) for field in carried]
    )
    return Normalised(writer.units, columns.id is not None, id_type or pa.string(), carried, spec.image_root)


def row_namer(file: str, word: str, numbers: Sequence[int]) -> Callable[[int], str]:
    """How messages call the row with a given index: ``manifest.csv, row 7``."""
    return lambda index: f"{redact(file)}, {word} {numbers[index]}"


def _canonical(table: pa.Table, columns: Columns, carry: Collection[str]) -> pa.Table:
    chosen = {ID: columns.id, URI: columns.uri, **{name: name for name in carry}}
    return pa.table({name: table[source] for name, source in chosen.items() if source is not None})


def _are_canonical_integers(ids: pa.ChunkedArray) -> bool:
    return bool(pc.all(pc.match_substring_regex(ids, _CANONICAL_INTEGER)).as_py())


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
