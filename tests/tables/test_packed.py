"""Tables as one row of another: nothing is lost on the way, nothing is copied, and cuts fall where they should."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.tables.packed import cut, packed, unpacked

ROWS = pa.table(
    {
        "image_id": pa.array([3, None, 5], pa.int64()),
        "pixels": pa.array([b"abc", None, b""], pa.large_binary()),
        "tags": pa.array([[1, 2], None, []], pa.list_(pa.int32())),
    },
    schema=pa.schema(
        [
            pa.field("image_id", pa.int64(), metadata={"of": "field"}),
            ("pixels", pa.large_binary()),
            ("tags", pa.list_(pa.int32())),
        ]
    ),
)


@pytest.mark.parametrize("rows", [ROWS, ROWS.slice(1, 1), ROWS.slice(1), ROWS.slice(3)], ids=len)
def test_a_row_holds_them_all(rows: pa.Table) -> None:
    block = packed(rows)
    assert len(block) == 1
    assert unpacked(block).equals(rows)
    assert unpacked(block).schema.equals(rows.schema, check_metadata=True)


def test_chunks_are_joined_and_several_blocks_are_their_rows() -> None:
    chunks = pa.concat_tables([ROWS.slice(0, 2), ROWS.slice(2)])
    assert unpacked(packed(chunks)).equals(ROWS)
    assert unpacked(pa.concat_tables([packed(ROWS), packed(ROWS.slice(1))])).to_pylist() == (
        ROWS.to_pylist() + ROWS.slice(1).to_pylist()
    )


def test_nothing_is_copied() -> None:
    def address(rows: pa.Table) -> int:
        return rows["pixels"].chunk(0).buffers()[2].address

    before = pa.total_allocated_bytes()
    (table,) = cut([ROWS], 3)
    assert address(unpacked(packed(table))) == address(ROWS)
    assert pa.total_allocated_bytes() - before < 1000


@given(sizes=st.lists(st.integers(0, 9), max_size=8), num_rows=st.integers(1, 10))
def test_cuts(sizes: list[int], num_rows: int) -> None:
    total = sum(sizes)
    ids = pa.table({"id": range(total)})
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    tables = list(cut((ids.slice(a, n) for a, n in zip(starts, sizes, strict=True)), num_rows))
    assert [len(table) for table in tables] == [num_rows] * (total // num_rows) + [total % num_rows][: total % num_rows]
    assert [i for table in tables for i in table["id"].to_pylist()] == list(range(total))


def test_a_table_is_given_as_soon_as_its_rows_are_there() -> None:
    def tables() -> Iterator[pa.Table]:
        yield ROWS
        raise AssertionError("nobody needs more")

    assert next(cut(tables(), 2)).equals(ROWS.slice(0, 2))
