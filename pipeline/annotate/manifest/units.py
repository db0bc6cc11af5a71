"""Reading one unit of a manifest: a row group of a Parquet file that must still be what it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.annotate.manifest.rules import ManifestError, ReadUnit, check_ids, row_namer
from pipeline.storage.errors import StorageError, explained
from pipeline.storage.filesystems import open_filesystem
from pipeline.storage.uris import Uri

_STREAM_BUFFER_BYTES = 1 << 20


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


def read_column(file: pq.ParquetFile, unit: ReadUnit, name: str, kind: pa.DataType) -> pa.Array:
    """A column of a unit's rows, cast.

    Raises:
        ManifestError: it has not as many values as there are rows: the file is damaged.
    """
    values = file.read_row_group(unit.row_group, columns=[name])[name].cast(kind).combine_chunks()
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
