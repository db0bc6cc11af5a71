"""A data file of the output: its name, its bytes, and what its footer says about it.

The footer says who made the rows, and how many there are of which kind. It stands in the file that it describes,
so it cannot disagree with it; and it is read without the data.

No damage passes for data: each page has the checksum that Parquet has for it, and the footer, for which Parquet has
none, a digest of its own. Files of earlier releases have neither, and are read as they are.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field, TypeAdapter

from pipeline.annotations.schema import (
    ANNOTATED,
    DELETED,
    FAILED,
    READABLE_VERSIONS,
    SCHEMA_VERSION,
    Rows,
    check_output_schema,
    current_rows,
    current_schema,
    stored_columns,
    there,
)
from pipeline.errors import UserError
from pipeline.storage.objects.base import Entry, ObjectFolder, ReadFailed

MAGIC = b"PAR1"
ROWS_PER_GROUP = 2048
_PREFIX = "maskfleet."
_TAIL_BYTES = 64 << 10  # more than a footer of ours, so that one request reads it
_DIGEST_KEY = _PREFIX + "footer_sha256"
_NO_DIGEST = b"0" * 64
# In Thrift's compact protocol a string is 0x18 and its length before its bytes.
_DIGEST_PLACE = _DIGEST_KEY.encode() + b"\x18" + bytes([len(_NO_DIGEST)])
# The only columns with values that repeat.
_DICTIONARY_COLUMNS = ["status", "stage", "error_code", "run_id", "detections.list.element.category_name"]
# Those of run-length strings would fill the footer.
_STATISTICS_COLUMNS = ["image_id", "height", "width", "status", "error_code", "detections.list.element.score"]


class OutputError(UserError):
    """The output folder is not what it should be; the message says what to do."""


class NotParquet(UserError):
    """The end of a file is not the end of a Parquet file."""


class Damaged(UserError):
    """A file of ours that is not as it was written; the message says why, without the file's name."""


@dataclass(frozen=True)
class Identity:
    """What made the rows of a file.

    Attributes:
        model_name: variant and file of the checkpoint, for people.
        weights_sha256: digest of the weights, the same whatever file they came from.
        config_digest: of all settings that change what is in the rows, and of no other.
        content_config: those settings as JSON, so that a difference can be shown; no secrets in it.
        code_version: of the code that wrote the file, for people.
        run_id: the run that wrote the file.

    Files with the same weights and config digest belong in one output; the rest may differ.
    """

    model_name: str
    weights_sha256: str
    config_digest: str
    content_config: str
    code_version: str
    run_id: str


@dataclass(frozen=True)
class Counts:
    """Rows by kind.

    Attributes:
        annotated: images with ``status`` annotated.
        failed: images with ``status`` failed.
        deleted: images with ``status`` deleted; neither their codes nor their detections are counted.
        failures_by_code: failed images by ``error_code``.
        detections_by_category: detections by ``category_id``.
    """

    annotated: int = 0
    failed: int = 0
    failures_by_code: Mapping[str, int] = field(default_factory=dict)
    detections_by_category: Mapping[int, int] = field(default_factory=dict)
    deleted: int = 0

    @property
    def rows(self) -> int:
        """All of them."""
        return self.images + self.deleted

    @property
    def images(self) -> int:
        """Rows without those whose pictures are gone."""
        return self.annotated + self.failed

    @classmethod
    def of(cls, table: pa.Table) -> Counts:
        """Count the rows of a table with the output's schema.

        Raises:
            ValueError: a status that is none.
        """
        by_status = _value_counts(table["status"])
        if set(by_status) - {ANNOTATED, FAILED, DELETED}:
            raise ValueError(f"status must be {ANNOTATED}, {FAILED} or {DELETED}, not {sorted(map(str, by_status))}")
        if by_status.get(DELETED):
            table = there(table)
        categories = pc.struct_field(pc.list_flatten(table["detections"]), "category_id")
        return cls(
            by_status.get(ANNOTATED, 0),
            by_status.get(FAILED, 0),
            _value_counts(table["error_code"].drop_null()),
            _value_counts(categories),
            by_status.get(DELETED, 0),
        )

    @classmethod
    def total(cls, parts: Iterable[Counts]) -> Counts:
        """The sum, most frequent codes and categories first."""
        annotated = failed = deleted = 0
        codes: Counter[str] = Counter()
        categories: Counter[int] = Counter()
        for part in parts:
            annotated += part.annotated
            failed += part.failed
            deleted += part.deleted
            codes.update(part.failures_by_code)
            categories.update(part.detections_by_category)
        return cls(annotated, failed, dict(codes.most_common()), dict(categories.most_common()), deleted)


_COUNTS = TypeAdapter(Counts)
_RUNS = TypeAdapter(dict[str, int])
_REPLACES: TypeAdapter[Mapping[str, int | None]] = TypeAdapter(dict[str, Annotated[int, Field(ge=0)]])


@dataclass(frozen=True)
class Footer:
    """What the footer of one of our files says.

    Attributes:
        schema: columns as which its rows are read, without the metadata beside them: today's, whichever of
            `READABLE_VERSIONS` wrote it.
        schema_version: of the code that wrote it.
        identity: what made the rows.
        counts: rows by kind.
        runs: rows by the run that made them.
        replaces: names of the files that this one is to replace, each with how many of their rows it leaves out on
            purpose; ``None`` where that is not said, by a file of an earlier release: then it is all that failed.
    """

    schema: pa.Schema
    schema_version: str
    identity: Identity
    counts: Counts
    runs: Mapping[str, int]
    replaces: Mapping[str, int | None]

    @property
    def knows_versions(self) -> bool:
        """Whether its rows say which version of a picture they were made from."""
        return self.schema_version == SCHEMA_VERSION

    @property
    def is_readable(self) -> bool:
        """Whether this code knows what the columns mean."""
        return self.schema_version in READABLE_VERSIONS


def data_file_name(ids: pa.ChunkedArray, token: str = "") -> str:
    """The name of the file with these ids in this order.

    Args:
        ids: of its rows.
        token: 8 hexadecimal digits, for a file that must not have the name of another one with these ids.
    """
    kind = "int" if pa.types.is_integer(ids.type) else "str"
    texts = [str(value) for value in ids.to_pylist()]
    # With lengths, or the ids "1,2" and "3" would be "1" and "2,3".
    joined = kind + "".join(f"{len(text)}:{text}," for text in texts)
    stem = f"part-{hashlib.sha256(joined.encode()).hexdigest()[:20]}"
    return f"{stem}-{token}.parquet" if token else f"{stem}.parquet"


def encode_data_file(
    table: pa.Table, identity: Identity, compression_level: int, replaces: Mapping[str, int] | None = None
) -> pa.Buffer:
    """The bytes of a data file.

    Args:
        table: of the output's schema; ids unique and not null. At least one row, or none in the place of others.
        identity: what made the rows.
        compression_level: of zstd, 1 to 22.
        replaces: see `Footer`.

    Raises:
        ValueError: the table breaks the contract.
    """
    check_output_schema(table.schema)
    ids = table["image_id"]
    if not (len(ids) or replaces) or ids.null_count or pc.count_distinct(ids).as_py() != len(ids):
        raise ValueError("a data file needs at least one row, and ids that are unique and not null")
    metadata = _metadata(identity, Counts.of(table), _value_counts(table["run_id"].drop_null()), replaces)
    sink = pa.BufferOutputStream()
    pq.write_table(
        table.replace_schema_metadata(metadata | {_DIGEST_KEY: _NO_DIGEST.decode()}),
        sink,
        row_group_size=ROWS_PER_GROUP,
        compression="zstd",
        compression_level=compression_level,
        use_dictionary=_DICTIONARY_COLUMNS,
        write_statistics=_STATISTICS_COLUMNS,
        write_page_checksum=True,
    )
    return _with_digest(sink.getvalue())


def _metadata(
    identity: Identity, counts: Counts, runs: Mapping[str, int], replaces: Mapping[str, int] | None = None
) -> dict[str, str]:
    values = {
        "schema_version": SCHEMA_VERSION,
        "replaces": json.dumps(replaces) if replaces else "",
        "counts": json.dumps(asdict(counts)),
        "runs": json.dumps(runs),
    }
    return {_PREFIX + key: value for key, value in {**asdict(identity), **values}.items()}


def _with_digest(content: pa.Buffer) -> pa.Buffer:
    """The same file with the digest of its footer in the place that was left for it."""
    footer_bytes = int.from_bytes(content.slice(content.size - 8, 4), "little") + 8
    footer = content.slice(content.size - footer_bytes).to_pybytes()
    start = content.size - footer_bytes + footer.rindex(_DIGEST_PLACE) + len(_DIGEST_PLACE)
    whole = bytearray(content)
    whole[start : start + len(_NO_DIGEST)] = hashlib.sha256(footer).hexdigest().encode()
    return pa.py_buffer(whole)


def _is_intact(footer: bytes) -> bool:
    place = footer.rfind(_DIGEST_PLACE)
    if place < 0:  # of an earlier release
        return True
    start = place + len(_DIGEST_PLACE)
    stop = start + len(_NO_DIGEST)
    return hashlib.sha256(footer[:start] + _NO_DIGEST + footer[stop:]).hexdigest().encode() == footer[start:stop]


def read_footer(objects: ObjectFolder, name: str, entry: Entry) -> bytes:
    """The bytes of a file's footer, for `parse_footer` and `open_data_file`: one request where it is of ours.

    Raises:
        NotParquet: the file is cut off: its end is not that of a Parquet file.
        Damaged: its end is, so that it was whole once, and what is before that is not what was written.
        OSError: it cannot be read.
    """
    with objects.open(name, entry.size_bytes) as source:
        return _read_footer(source, name, entry.size_bytes)


def parse_footer(content: bytes) -> Footer | None:
    """What a footer says; ``None`` if it is of a Parquet file that this pipeline did not write.

    Raises:
        Damaged: it is not what was written.
    """
    return _parse(_metadata_of(content))


class RowsOfFile:
    """The rows of a data file, with today's columns, whichever of `READABLE_VERSIONS` wrote it.

    Columns are named by their paths in Parquet, and come in the order in which they are named.

    Args:
        file: of ours.
    """

    def __init__(self, file: pq.ParquetFile) -> None:
        self._file = file
        texts = file.metadata.metadata or {}
        self._version, self._run_id = (
            texts.get(f"{_PREFIX}{key}".encode(), b"").decode() for key in ("schema_version", "run_id")
        )

    def read(self, columns: Sequence[str] | None) -> pa.Table:
        """All rows; of all columns, if none are named."""
        return self._current(self._file.read(self._stored(columns), use_threads=False), columns)

    def read_row_group(self, number: int, columns: Sequence[str]) -> pa.Table:
        """The rows of a row group."""
        return self._current(self._file.read_row_group(number, self._stored(columns), use_threads=False), columns)

    def iter_batches(self, max_rows: int, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """All rows, so many at a time at most."""
        for batch in self._file.iter_batches(max_rows, columns=self._stored(columns), use_threads=False):
            yield self._current(batch, columns)

    def _stored(self, columns: Sequence[str] | None) -> list[str] | None:
        return None if columns is None else stored_columns(columns, self._version)

    def _current(self, stored: Rows, columns: Sequence[str] | None) -> Rows:
        return current_rows(stored, columns, self._version, self._run_id)


@contextmanager
def open_data_file(objects: ObjectFolder, name: str, entry: Entry, footer: bytes | None = None) -> Iterator[RowsOfFile]:
    """A file for reading its rows, whose pages are checked as they are read.

    Args:
        footer: its bytes, where they were read before, and said that it is ours: they are not read again.

    Raises:
        NotParquet, Damaged, OSError: see `read_footer`.
    """
    with objects.open(name, entry.size_bytes) as source:
        metadata = _metadata_of(_read_footer(source, name, entry.size_bytes) if footer is None else footer)
        if footer is None and _parse(metadata) is None:
            raise Damaged("it is not one of annotate's any more")
        yield RowsOfFile(pq.ParquetFile(source, metadata=metadata, pre_buffer=True, page_checksum_verification=True))


def _read_footer(source: pa.NativeFile, name: str, size_bytes: int) -> bytes:
    tail = _read_end(source, size_bytes, _TAIL_BYTES)
    if len(tail) < 12 or tail[-4:] != MAGIC:  # two magics and a length
        raise NotParquet(name)
    footer_bytes = int.from_bytes(tail[-8:-4], "little") + 8
    if footer_bytes > size_bytes - len(MAGIC):
        raise Damaged(f"a footer of {footer_bytes:,} bytes does not fit into it")
    return (tail if footer_bytes <= len(tail) else _read_end(source, size_bytes, footer_bytes))[-footer_bytes:]


def _metadata_of(footer: bytes) -> pq.FileMetaData:
    try:
        metadata = pq.read_metadata(pa.BufferReader(footer))
    # Of bytes in memory: pyarrow's own complaints, and Python's of a name that is no text.
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        raise Damaged(f"its footer cannot be read: {_brief(error)}") from None
    if not _is_intact(footer):
        raise Damaged("its footer is not what was written")
    return metadata


def _read_end(source: pa.NativeFile, size_bytes: int, num_bytes: int) -> bytes:
    wanted = min(num_bytes, size_bytes)
    source.seek(size_bytes - wanted)
    content = source.read(wanted)
    if len(content) < wanted:  # which is no reason to take the file for one that is cut off, and to remove it
        raise ReadFailed(f"the storage gave {len(content):,} bytes of {wanted:,}")
    return content


def _parse(metadata: pq.FileMetaData) -> Footer | None:
    raw = metadata.metadata or {}
    ours = {key: text for key, text in raw.items() if key.startswith(_PREFIX.encode())}
    if not ours:
        return None
    try:
        texts = {key.decode()[len(_PREFIX) :]: text.decode() for key, text in ours.items()}
        identity = Identity(**{name: texts[name] for name in Identity.__dataclass_fields__})
        counts = _COUNTS.validate_json(texts["counts"])
        schema = metadata.schema.to_arrow_schema().remove_metadata()
        if texts["schema_version"] in READABLE_VERSIONS:
            schema = current_schema(schema, texts["schema_version"])
        if counts.rows != metadata.num_rows:
            raise Damaged(f"its footer counts {counts.rows:,} rows and says that there are {metadata.num_rows:,}")
        # A file of an earlier release is of one run.
        runs = _RUNS.validate_json(texts["runs"]) if "runs" in texts else {identity.run_id: counts.rows}
        return Footer(schema, texts["schema_version"], identity, counts, runs, _replaces(texts["replaces"]))
    except Damaged:
        raise
    except KeyError as error:
        raise Damaged(f"its footer says nothing of {error}") from None
    except (ValueError, pa.ArrowException, RecursionError) as error:
        raise Damaged(f"its footer is not what was written: {_brief(error)}") from None


def _replaces(text: str) -> Mapping[str, int | None]:
    if not text.startswith("{"):  # of an earlier release: a name
        return {text: None} if text else {}
    return _REPLACES.validate_json(text)


def _brief(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


def differences(old: Footer, identity: Identity, schema: pa.Schema | None = None) -> list[str]:
    """What keeps rows of this identity (and schema) out of an output with such files: ``key: old -> new``."""
    found = [] if old.is_readable else list(_changed("schema_version", old.schema_version, SCHEMA_VERSION))
    found += _changed("weights_sha256", old.identity.weights_sha256, identity.weights_sha256)
    if found:
        found += _changed("model_name", old.identity.model_name, identity.model_name)
    if old.identity.config_digest != identity.config_digest:
        before, after = (_settings(text) for text in (old.identity.content_config, identity.content_config))
        keys = sorted({*before, *after})
        changed = [line for k in keys for line in _changed(k, before.get(k, "(not set)"), after.get(k, "(not set)"))]
        found += changed or _changed("config_digest", old.identity.config_digest, identity.config_digest)
    if schema is not None and not old.schema.equals(schema):
        found += _changed_columns(old.schema, schema)
    return found


def _changed(key: str, old: str, new: str) -> Iterator[str]:
    if old != new:
        yield f"{key}: {old} -> {new}"


def _changed_columns(old: pa.Schema, new: pa.Schema) -> list[str]:
    before, after = ({f.name: f.type for f in schema} for schema in (old, new))
    changed = [
        f"column {name}: {before.get(name, '(none)')} -> {after.get(name, '(none)')}"
        for name in dict.fromkeys([*before, *after])
        if before.get(name) != after.get(name)  # as types, which forgives names inside lists
    ]
    return changed or ["columns: in another order"]


def _settings(text: str) -> dict[str, str]:
    """By their keys, dotted; none where this is not what an `Identity` has."""
    try:
        return _flat(json.loads(text))
    except (ValueError, RecursionError):
        return {}


def _flat(value: Any, prefix: str = "") -> dict[str, str]:
    if not isinstance(value, dict) or not value:
        return {prefix or "config": json.dumps(value)}
    parts = (_flat(inner, f"{prefix}.{key}" if prefix else str(key)) for key, inner in value.items())
    return {key: text for part in parts for key, text in part.items()}


def _value_counts(values: pa.ChunkedArray) -> dict[Any, int]:
    return {pair["values"]: pair["counts"] for pair in pc.value_counts(values).to_pylist()}
