"""Which version of each picture a manifest speaks of: ETag, size and time of its last change, from whatever it has.

Hints to compare with what an output was made from: what cannot be read as one is null, that is not known.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.annotate.config import ManifestConfig
from pipeline.annotations.schema import OBJECT_COLUMNS
from pipeline.storage.versions import ObjectVersion
from pipeline.tables.arrow_types import in_one_piece, is_text

VERSION_COLUMNS = pa.schema([OBJECT_COLUMNS.field(name) for name in ("object_etag", "object_size", "object_mtime")])
ETAG, SIZE, MTIME = VERSION_COLUMNS.names

COPIED = {name: name for name in VERSION_COLUMNS.names}  # as a copy of a manifest calls them

_SIZE_TEXT = r"^[0-9]{1,18}(\.0*)?$"
_SECONDS_TEXT = r"^[0-9]{1,12}(\.[0-9]*)?$"
# ISO 8601 of a moment: what is beyond microseconds goes, and what has no zone is UTC.
_TIME_TEXT = (
    r"^(?P<date>\d{4}-\d\d-\d\d)[T ](?P<time>\d\d:\d\d:\d\d)(?P<fraction>\.\d{1,6})?\d*(?P<zone>Z|[+-]\d\d:?\d\d)?$"
)
_TIME = VERSION_COLUMNS.field(MTIME).type
_PER_SECOND = 1_000_000
_UNITS = {"s": 1, "ms": 1_000, "us": _PER_SECOND, "ns": 1_000_000_000}
_LAST_SECOND = 253_402_300_799  # of the year 9999, the last that Python has


def version_sources(config: ManifestConfig) -> dict[str, str]:
    """The manifest's columns by the names of `VERSION_COLUMNS`."""
    return dict(zip(VERSION_COLUMNS.names, (config.etag_column, config.size_column, config.mtime_column), strict=True))


def named_by_user(config: ManifestConfig) -> list[str]:
    """Those of `version_sources` that must be there: others may be missing."""
    fields = type(config).model_fields
    names = ("etag_column", "size_column", "mtime_column")
    return [getattr(config, name) for name in names if getattr(config, name) != fields[name].default]


def version_table(columns: Mapping[str, pa.Array | pa.ChunkedArray | None], num_rows: int) -> pa.Table:
    """A table of `VERSION_COLUMNS`.

    Args:
        columns: of any type, by those names; all null where one is missing.
        num_rows: of each.
    """
    made = []
    for field, read in zip(VERSION_COLUMNS, (_etags, _sizes, _times), strict=True):
        values = columns.get(field.name)
        found = None if values is None else read(_plain(values))
        made.append(pa.nulls(num_rows, field.type) if found is None else found)
    return pa.table(made, schema=VERSION_COLUMNS)


def listed_versions(versions: Sequence[ObjectVersion]) -> pa.Table:
    """A table of `VERSION_COLUMNS` of what a listing tells."""
    columns = zip(*(version[:3] for version in versions), strict=True) if versions else [[]] * 3
    return pa.table(
        [pa.array(values, field.type) for field, values in zip(VERSION_COLUMNS, columns, strict=True)],
        schema=VERSION_COLUMNS,
    )


def untyped_column(values: Iterable[Any]) -> pa.Array:
    """Values of JSON as a column of text, for `version_table`."""
    texts = (str(v) if isinstance(v, str | int | float) and not isinstance(v, bool) else None for v in values)
    # Lone surrogates, which JSON may have, are no text.
    return pa.array([t if t and t.encode(errors="replace").decode() == t else None for t in texts], pa.string())


def _plain(values: pa.Array | pa.ChunkedArray) -> pa.Array:
    """One array, neither of a dictionary nor a view; text that is not UTF-8 is null as a whole."""
    values = in_one_piece(values)
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if is_text(values.type):
        values = values.cast(pa.string())
        try:
            values.validate(full=True)
        except pa.ArrowException:
            return pa.nulls(len(values), pa.string())
    return values


def _etags(values: pa.Array) -> pa.Array | None:
    if not pa.types.is_string(values.type):
        return None
    plain = pc.replace_substring_regex(values, r'(?s)\A"(.*)"\z', r"\1")  # weak ones stay, as `plain_etag` has it
    return pc.if_else(pc.equal(pc.binary_length(plain), 0), None, plain)


def _sizes(values: pa.Array) -> pa.Array | None:
    if pa.types.is_string(values.type):
        digits = pc.replace_substring_regex(values, r"\.0*\z", "")
        values = pc.if_else(pc.match_substring_regex(values, _SIZE_TEXT), digits, None).cast(pa.int64())
    elif pa.types.is_floating(values.type) or pa.types.is_decimal(values.type):
        values = values.cast(pa.float64(), safe=False)
        is_whole = pc.and_(pc.equal(values, pc.floor(values)), pc.less(values, float(1 << 63)))
        values = pc.if_else(pc.fill_null(pc.and_(is_whole, pc.greater_equal(values, 0)), False), values, None)
        values = values.cast(pa.int64(), safe=False)
    elif pa.types.is_integer(values.type):
        values = values.cast(pa.int64(), safe=False)  # what is too large becomes negative
    else:
        return None
    return pc.if_else(pc.greater_equal(values, 0), values, None)


def _times(values: pa.Array) -> pa.Array | None:
    """Moments in UTC: of times, which are in UTC if they have no zone, of ISO 8601, or of seconds since 1970."""
    if pa.types.is_timestamp(values.type):
        per_second = _UNITS[values.type.unit]
        ticks = _in_range(values.cast(pa.timestamp(values.type.unit)).cast(pa.int64()), per_second)
        if per_second < _PER_SECOND:
            ticks = pc.multiply(ticks, _PER_SECOND // per_second)
        return pc.divide(ticks, max(1, per_second // _PER_SECOND)).cast(_TIME)
    if pa.types.is_string(values.type):
        seconds = pc.if_else(pc.match_substring_regex(values, _SECONDS_TEXT), values, None).cast(pa.float64())
        return pc.coalesce(_iso_times(values), _from_seconds(seconds))
    if pa.types.is_integer(values.type) or pa.types.is_floating(values.type) or pa.types.is_decimal(values.type):
        return _from_seconds(values.cast(pa.float64(), safe=False))
    return None


def _from_seconds(seconds: pa.Array) -> pa.Array:
    good = pc.and_(pc.greater_equal(seconds, 0.0), pc.less_equal(seconds, float(_LAST_SECOND)))
    kept = pc.if_else(pc.fill_null(good, False), seconds, None)
    return pc.floor(pc.multiply(kept, float(_PER_SECOND))).cast(pa.int64(), safe=False).cast(_TIME)


def _in_range(ticks: pa.Array, per_second: int) -> pa.Array:
    # Of nanoseconds 64 bits end before.
    last = min(_LAST_SECOND * per_second, (1 << 63) - 1)
    return pc.if_else(pc.and_(pc.greater_equal(ticks, 0), pc.less_equal(ticks, last)), ticks, None)


def _iso_times(values: pa.Array) -> pa.Array:
    parts = pc.extract_regex(values, _TIME_TEXT)
    zone = pc.struct_field(parts, "zone")
    texts = pc.binary_join_element_wise(
        pc.struct_field(parts, "date"),
        pc.binary_join_element_wise(
            pc.struct_field(parts, "time"),
            pc.struct_field(parts, "fraction"),
            pc.if_else(pc.equal(zone, ""), "Z", zone),
            "",
        ),
        "T",
    )
    try:
        return _in_range(texts.cast(_TIME).cast(pa.int64()), _PER_SECOND).cast(_TIME)
    except pa.ArrowException:  # a month or an hour that there is not: the others one by one
        return pa.array([_one_time(text) for text in texts], _TIME)


def _one_time(text: pa.Scalar) -> Any:
    with suppress(pa.ArrowException):
        return text.cast(_TIME).as_py()
    return None
