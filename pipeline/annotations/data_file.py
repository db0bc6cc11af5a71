"""A data file of the output: its name, its bytes, and what its footer says about it.

The footer says who made the rows, and how many there are of which kind. It stands in the file that it describes,
so it cannot disagree with it; and it is read without the data.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.annotations.schema import ANNOTATED, FAILED, SCHEMA_VERSION, check_output_schema
from pipeline.errors import UserError
from pipeline.storage.objects.base import Entry, ObjectFolder

MAGIC = b"PAR1"
ROWS_PER_GROUP = 2048
_PREFIX = "maskfleet."
_TAIL_BYTES = 64 << 10  # more than a footer of ours, so that one request reads it
# The only columns with values that repeat.
_DICTIONARY_COLUMNS = ["status", "stage", "error_code", "detections.list.element.category_name"]
# Those of run-length strings would fill the footer.
_STATISTICS_COLUMNS = ["image_id", "height", "width", "status", "error_code", "detections.list.element.score"]


class OutputError(UserError):
    """The output folder is not what it should be; the message says what to do."""


class NotParquet(UserError):
    """The end of a file is not the end of a Parquet file."""


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

    Files with the same weights, config digest and schema version belong in one output; the rest may differ.
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
        failures_by_code: failed images by ``error_code``.
        detections_by_category: detections by ``category_id``.
    """

    annotated: int = 0
    failed: int = 0
    failures_by_code: Mapping[str, int] = field(default_factory=dict)
    detections_by_category: Mapping[int, int] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Annotated and failed."""
        return self.annotated + self.failed

    @classmethod
    def of(cls, table: pa.Table) -> Counts:
        """Count the rows of a table with the output's schema.

        Raises:
            ValueError: a status that is neither annotated nor failed.
        """
        by_status = _value_counts(table["status"])
        if set(by_status) - {ANNOTATED, FAILED}:
            raise ValueError(f"status must be {ANNOTATED} or {FAILED}, not {sorted(map(str, by_status))}")
        categories = pc.struct_field(pc.list_flatten(table["detections"]), "category_id")
        return cls(
            by_status.get(ANNOTATED, 0),
            by_status.get(FAILED, 0),
            _value_counts(table["error_code"].drop_null()),
            _value_counts(categories),
        )

    @classmethod
    def total(cls, parts: Iterable[Counts]) -> Counts:
        """The sum, most frequent codes and categories first."""
        annotated = failed = 0
        codes: Counter[str] = Counter()
        categories: Counter[int] = Counter()
        for part in parts:
            annotated += part.annotated
            failed += part.failed
            codes.update(part.failures_by_code)
            categories.update(part.detections_by_category)
        return cls(annotated, failed, dict(codes.most_common()), dict(categories.most_common()))


@dataclass(frozen=True)
class Footer:
    """What the footer of one of our files says.

    Attributes:
        schema: columns of the file, without the metadata beside them.
        schema_version: of the code that wrote it.
        identity: what made the rows.
        counts: rows by kind.
        replaces: name of the file that this one is to replace, ``""`` if none.
    """

    schema: pa.Schema
    schema_version: str
    identity: Identity
    counts: Counts
    replaces: str


def data_file_name(ids: pa.ChunkedArray, token: str = "") -> str:
    """The name of the file with these ids in this order.

    Args:
        ids: of its rows.
        token: 8 hexadecimal digits, for a file made of another one; ``""`` for what a stage has written.
    """
    kind = "int" if pa.types.is_integer(ids.type) else "str"
    texts = [str(value) for value in ids.to_pylist()]
    # With lengths, or the ids "1,2" and "3" would be "1" and "2,3".
    joined = kind + "".join(f"{len(text)}:{text}," for text in texts)
    stem = f"part-{hashlib.sha256(joined.encode()).hexdigest()[:20]}"
    return f"{stem}-{token}.parquet" if token else f"{stem}.parquet"


def encode_data_file(table: pa.Table, identity: Identity, compression_level: int, replaces: str) -> pa.Buffer:
    """The bytes of a data file.

    Args:
        table: at least one row, of the output's schema; ids unique and not null.
        identity: what made the rows.
        compression_level: of zstd, 1 to 22.
        replaces: name of the file that this one is to replace, ``""`` if none.

    Raises:
        ValueError: the table breaks the contract.
    """
    check_output_schema(table.schema)
    ids = table["image_id"]
    if not len(ids) or ids.null_count or pc.count_distinct(ids).as_py() != len(ids):
        raise ValueError("a data file needs at least one row, and ids that are unique and not null")
    metadata = _metadata(identity, Counts.of(table), replaces)
    sink = pa.BufferOutputStream()
    pq.write_table(
        table.replace_schema_metadata(metadata),
        sink,
        row_group_size=ROWS_PER_GROUP,
        compression="zstd",
        compression_level=compression_level,
        use_dictionary=_DICTIONARY_COLUMNS,
        write_statistics=_STATISTICS_COLUMNS,
    )
    return sink.getvalue()


def _metadata(identity: Identity, counts: Counts, replaces: str) -> dict[str, str]:
    values = {"schema_version": SCHEMA_VERSION, "replaces": replaces, "counts": json.dumps(asdict(counts))}
    return {_PREFIX + key: value for key, value in {**asdict(identity), **values}.items()}


def read_footer(objects: ObjectFolder, name: str, entry: Entry) -> Footer | None:
    """The footer of a file; ``None`` if it is a Parquet file that this pipeline did not write.

    Raises:
        NotParquet: the file is cut off or is no Parquet file.
        OSError: it cannot be read.
    """
    if entry.size_bytes < 12:  # two magics and a length
        raise NotParquet(name)
    tail = objects.read_range(name, max(0, entry.size_bytes - _TAIL_BYTES), entry.size_bytes)
    if tail[-4:] != MAGIC:
        raise NotParquet(name)
    footer_bytes = int.from_bytes(tail[-8:-4], "little") + 8
    if footer_bytes > entry.size_bytes:
        raise NotParquet(name)
    if footer_bytes > len(tail):
        tail = objects.read_range(name, entry.size_bytes - footer_bytes, entry.size_bytes)
    try:
        metadata = pq.read_metadata(pa.BufferReader(tail[-footer_bytes:]))
    except (pa.ArrowException, OSError):  # pyarrow's own complaint: the bytes are in memory
        raise NotParquet(name) from None
    return _parse(metadata)


def _parse(metadata: pq.FileMetaData) -> Footer | None:
    raw = metadata.metadata or {}
    ours = {
        key.decode()[len(_PREFIX) :]: text.decode() for key, text in raw.items() if key.startswith(_PREFIX.encode())
    }
    try:
        identity = Identity(**{name: ours[name] for name in Identity.__dataclass_fields__})
        counted = json.loads(ours["counts"])
        # JSON knows keys of one type only.
        by_category = {int(key): number for key, number in counted.pop("detections_by_category").items()}
        counts = Counts(**counted, detections_by_category=by_category)
        schema = metadata.schema.to_arrow_schema().remove_metadata()
        return Footer(schema, ours["schema_version"], identity, counts, ours["replaces"])
    except (KeyError, TypeError, ValueError):
        return None


def differences(old: Footer, identity: Identity, schema: pa.Schema | None = None) -> list[str]:
    """What keeps rows of this identity (and schema) out of an output with such files: ``key: old -> new``."""
    found = list(_changed("schema_version", old.schema_version, SCHEMA_VERSION))
    found += _changed("weights_sha256", old.identity.weights_sha256, identity.weights_sha256)
    if found:
        found += _changed("model_name", old.identity.model_name, identity.model_name)
    if old.identity.config_digest != identity.config_digest:
        before, after = (_flat(json.loads(text)) for text in (old.identity.content_config, identity.content_config))
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


def _flat(value: Any, prefix: str = "") -> dict[str, str]:
    if not isinstance(value, dict) or not value:
        return {prefix or "config": json.dumps(value)}
    parts = (_flat(inner, f"{prefix}.{key}" if prefix else str(key)) for key, inner in value.items())
    return {key: text for part in parts for key, text in part.items()}


def _value_counts(values: pa.ChunkedArray) -> dict[Any, int]:
    return {pair["values"]: pair["counts"] for pair in pc.value_counts(values).to_pylist()}
