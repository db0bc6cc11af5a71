"""Reading one unit of a manifest, a row group of a Parquet file that must still be what it was; and its statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.annotate.manifest.rules import ManifestError, ReadUnit, check_ids, row_namer
from pipeline.storage.errors import StorageError, explained
from pipeline.storage.filesystems import open_filesystem
from pipeline.storage.uris import Uri

_STREAM_BUFFER_BYTES = 1 << 20
_TAIL_BYTES = 8  # the footer's length, and the magic bytes
# Field numbers of parquet.thrift: FileMetaData, RowGroup, ColumnChunk, ColumnMetaData, Statistics.
_ROW_GROUPS, _COLUMNS, _META_DATA, _PATH, _STATISTICS = 4, 1, 3, 3, 12
_OLD_MIN, _NULL_COUNT, _MIN = 2, 3, 6

Statistics = dict[int, Any]


@contextmanager
def open_unit(unit: ReadUnit, stream: bool = False) -> Iterator[pq.ParquetFile]:
    """The unit's file, if it is still the one that was cut into units; what Arrow finds wrong with it, explained."""
    try:
        with explained(unit.file), open_file(unit.file, stream) as file:
            metadata = file.metadata
            same = unit.row_group < metadata.num_row_groups
            if not same or metadata.row_group(unit.row_group).num_rows != unit.num_rows:
                raise ManifestError(f"{unit.file} has changed since the manifest was opened: start again")
            yield file
    except StorageError as error:
        raise ManifestError(str(error)) from None


def open_file(uri: Uri, stream: bool = False) -> pq.ParquetFile:
    """``stream`` reads pages as they are needed; otherwise whole columns of a row group, in one request each.

    Pages with a checksum are compared with it.
    """
    filesystem, path = open_filesystem(uri)
    options: dict[str, Any] = {"pre_buffer": False, "buffer_size": _STREAM_BUFFER_BYTES} if stream else {}
    return pq.ParquetFile(path, filesystem=filesystem, page_checksum_verification=True, **options)


def pick(rows: pa.Table | pa.RecordBatch, name: str) -> pa.Array | pa.ChunkedArray:
    """A column; or, under the name that Parquet has for it (``image.bytes``), a field of a struct."""
    if name in rows.schema.names:
        return rows[name]
    outer, _, inner = name.rpartition(".")
    return pc.struct_field(rows[outer], inner)


def read_column(file: pq.ParquetFile, unit: ReadUnit, name: str, kind: pa.DataType) -> pa.Array:
    """A column of a unit's rows, cast.

    Raises:
        ManifestError: it has not as many values as there are rows: the file is damaged.
    """
    values = pick(file.read_row_group(unit.row_group, columns=[name]), name).cast(kind).combine_chunks()
    if len(values) != unit.num_rows:
        raise ManifestError(
            f"{unit.file} is damaged: row group {unit.row_group} has {len(values)} values of {name!r} for "
            f"{unit.num_rows} rows; write it anew"
        )
    values.validate(full=True)
    return values


def unit_row_namer(unit: ReadUnit) -> Callable[[int], str]:
    """How messages call the row of a unit with a given index."""
    return row_namer(unit.file, f"row group {unit.row_group}, row", range(1, unit.num_rows + 1))


def read_id_column(unit: ReadUnit, column: str, id_type: pa.DataType) -> pa.Array:
    """The ids of a unit's rows, cast; reads one column, all of it.

    Raises:
        ManifestError: a null or empty id, or the file is not what it was.
        OSError: it cannot be read; worth another try.
    """
    with open_unit(unit) as file:
        ids = read_column(file, unit, column, id_type)
    check_ids(ids, unit_row_namer(unit))
    return ids


def read_statistics(uri: Uri) -> list[dict[str, Statistics]]:
    """For each row group the statistics of its columns, by their names; without those that have none.

    Read here, since pyarrow's view of damaged ones ends the process.

    Raises:
        OSError, LookupError, ValueError: it cannot be read, or is damaged.
    """
    filesystem, path = open_filesystem(uri)
    with filesystem.open_input_file(path) as file:
        size = file.size()
        length = int.from_bytes(_read(file, size - _TAIL_BYTES, 4), "little")
        footer = _Compact(_read(file, size - _TAIL_BYTES - length, length)).struct()
    groups = []
    try:
        for row_group in footer[_ROW_GROUPS]:
            columns = [chunk.get(_META_DATA, {}) for chunk in row_group[_COLUMNS]]
            known = [column for column in columns if isinstance(column.get(_STATISTICS), dict)]
            groups.append({b".".join(column[_PATH]).decode(): column[_STATISTICS] for column in known})
    except (AttributeError, TypeError):
        raise ValueError("the footer holds other things than a footer does") from None
    return groups


def surely_filled(statistics: Statistics | None, *, empty_counts: bool) -> bool:
    """Whether no value of a column is null, nor empty unless that counts as filled."""
    if statistics is None or statistics.get(_NULL_COUNT) != 0:
        return False
    return empty_counts or bool(statistics.get(_MIN, statistics.get(_OLD_MIN)))


def _read(file: pa.NativeFile, start: int, length: int) -> bytes:
    file.seek(max(0, start))
    return bytes(file.read(length))


class _Compact:
    """Thrift's compact protocol: structs as dicts by field number, lists as lists, text as bytes."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._at = 0

    def struct(self) -> dict[int, Any]:
        """The struct that begins here."""
        fields: dict[int, Any] = {}
        number = 0
        while (head := self._byte()) != 0:
            step, kind = head >> 4, head & 15
            number = number + step if step else self._integer()
            fields[number] = kind == 1 if kind in (1, 2) else self._value(kind)
        return fields

    def _value(self, kind: int) -> Any:
        if kind in (1, 2, 3):  # of lists, in which a truth value has a byte
            return self._byte()
        if kind in (4, 5, 6):
            return self._integer()
        if kind == 7:
            return self._bytes(8)
        if kind == 8:
            return self._bytes(self._varint())
        if kind in (9, 10):
            head = self._byte()
            count = self._varint() if head >> 4 == 15 else head >> 4
            return [self._value(head & 15) for _ in range(count)]
        if kind == 12:
            return self.struct()
        raise ValueError(f"no Thrift type {kind} is used in a footer")

    def _byte(self) -> int:
        self._at += 1
        return self._content[self._at - 1]

    def _bytes(self, length: int) -> bytes:
        if length > len(self._content) - self._at:
            raise ValueError("a value goes beyond the end")
        self._at += length
        return self._content[self._at - length : self._at]

    def _varint(self) -> int:
        value = shift = 0
        while (byte := self._byte()) & 128:
            value |= (byte & 127) << shift
            shift += 7
        return value | byte << shift

    def _integer(self) -> int:
        value = self._varint()
        return value >> 1 ^ -(value & 1)
