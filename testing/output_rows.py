"""Rows of the output, for whoever writes some without a run; and files as an earlier release wrote them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.annotations import data_file
from pipeline.annotations.schema import OBJECT_COLUMNS, RESERVED_NAMES, current_rows, output_schema

_ADDED = ("run_id", *OBJECT_COLUMNS.names)
NAMES_OF_1 = tuple(name for name in RESERVED_NAMES if name not in _ADDED)


def output_rows(columns: Sequence[Any], carried: pa.Table | None = None) -> pa.Table:
    """A table of the output's schema, of pictures of which no version is known.

    Args:
        columns: those from ``image_id`` to ``error_message``.
        carried: the columns behind.
    """
    extra = carried or pa.table({})
    rows = pa.table([*columns, *extra.columns], names=[*NAMES_OF_1, *extra.column_names])
    whole = current_rows(rows, None, "1", "")
    return whole.cast(output_schema(rows.schema.field("image_id").type, extra.schema))


def as_schema_1(path: Path, renamed: Mapping[str, str] | None = None) -> None:
    """Write a data file as the release before did: without the columns that came then.

    Args:
        renamed: carried columns with names that were free then, by what they are called now.
    """
    table = pq.read_table(path)
    metadata = {**(table.schema.metadata or {}), b"maskfleet.schema_version": b"1"}
    metadata[data_file._DIGEST_KEY.encode()] = data_file._NO_DIGEST
    sink = pa.BufferOutputStream()
    table = table.drop_columns(list(_ADDED))
    table = table.rename_columns([(renamed or {}).get(name, name) for name in table.column_names])
    pq.write_table(
        table.replace_schema_metadata(metadata),
        sink,
        row_group_size=data_file.ROWS_PER_GROUP,
        compression="zstd",
        use_dictionary=[name for name in data_file._DICTIONARY_COLUMNS if name not in _ADDED],
        write_statistics=data_file._STATISTICS_COLUMNS,
        write_page_checksum=True,
    )
    path.write_bytes(data_file._with_digest(sink.getvalue()))
