"""Tables that travel whole, as one row of another table; and tables cut into such ones. Nothing is copied for it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pyarrow as pa

from pipeline.tables.arrow_types import in_one_piece

_ROWS = "rows"


def whole(rows: pa.Table) -> pa.RecordBatch:
    """The same rows in one piece. Columns of several chunks are copied, others are not."""
    return pa.RecordBatch.from_arrays([in_one_piece(column) for column in rows.columns], schema=rows.schema)


def packed(rows: pa.Table) -> pa.Table:
    """One row that holds all of them; `whole`, they are its values."""
    values = whole(rows).to_struct_array()
    return pa.table({_ROWS: pa.LargeListArray.from_arrays(pa.array([0, len(values)], pa.int64()), values)})


def unpacked(block: pa.Table) -> pa.Table:
    """The rows that `packed` made the block of, without a copy; of several blocks, all their rows."""
    return pa.concat_tables(
        pa.Table.from_batches([pa.RecordBatch.from_struct_array(chunk.flatten())]) for chunk in block[_ROWS].chunks
    )


def cut(tables: Iterable[pa.Table], num_rows: int) -> Iterator[pa.Table]:
    """The same rows in tables of ``num_rows``; the last one may have fewer.

    A table that has so many passes as it is, the first of them as soon as its rows are there.
    """
    waiting: list[pa.Table] = []
    missing = num_rows
    for table in tables:
        start = 0
        while start < table.num_rows:
            waiting.append(table.slice(start, missing))
            start += waiting[-1].num_rows
            missing -= waiting[-1].num_rows
            if not missing:
                yield _joined(waiting)
                waiting, missing = [], num_rows
    if waiting:
        yield _joined(waiting)


def _joined(tables: list[pa.Table]) -> pa.Table:
    return tables[0] if len(tables) == 1 else pa.concat_tables(tables)
