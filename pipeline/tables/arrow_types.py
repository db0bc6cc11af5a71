"""One kind of value in Arrow's several encodings: which types are text, bytes, views; and columns and rows that are not
copied without need."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import pyarrow as pa

from pipeline.tables.arrays import Int64s

Rows = TypeVar("Rows", pa.Array, pa.Table)


def is_text(kind: pa.DataType) -> bool:
    """Whether values of an Arrow type are strings, in whichever encoding."""
    if pa.types.is_dictionary(kind):
        return is_text(kind.value_type)
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def is_binary(kind: pa.DataType) -> bool:
    """Whether values of an Arrow type are bytes, in whichever encoding."""
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def without_view(kind: pa.DataType) -> pa.DataType:
    """The plain type of a view type; other types as they are."""
    if pa.types.is_string_view(kind):
        return pa.string()
    return pa.binary() if pa.types.is_binary_view(kind) else kind


def without_views(batch: pa.RecordBatch) -> pa.Table:
    """View types as the plain ones: Arrow cannot pick rows of them."""
    fields = [field.with_type(without_view(field.type)) for field in batch.schema]
    return pa.Table.from_batches([batch]).cast(pa.schema(fields))


def in_one_piece(values: pa.Array | pa.ChunkedArray) -> pa.Array:
    """A column as one array, whatever chunks it has; it is copied only where there are several."""
    if isinstance(values, pa.ChunkedArray) and values.num_chunks == 1:
        return values.chunk(0)  # which combine_chunks copies
    joined = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    return pa.concat_arrays(joined.chunks) if isinstance(joined, pa.ChunkedArray) else joined


def taken(rows: Rows, places: Int64s) -> Rows:
    """Those at these places, in their order. Where that is all as they are, they are not copied."""
    return rows if np.array_equal(places, np.arange(len(rows))) else rows.take(pa.array(places))
