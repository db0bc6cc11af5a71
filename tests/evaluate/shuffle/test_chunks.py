from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.evaluate.shuffle import chunks
from pipeline.evaluate.shuffle.chunks import ChunkStore, Dealer, chunks_of, parts_of
from pipeline.storage.uris import Uri

SCHEMA = pa.schema([("image_id", pa.int64()), ("row", pa.int64())])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    ids=st.lists(st.integers(-5, 5), max_size=60),
    num_parts=st.integers(1, 7),
    at_once=st.integers(1, 20),
    buffer_bytes=st.integers(1, 300),
)
def test_every_row_comes_back_in_its_part_and_order(
    ids: list[int], num_parts: int, at_once: int, buffer_bytes: int, tmp_path: Path
) -> None:
    store = ChunkStore(Uri(str(tmp_path)))
    dealer = Dealer(store, "x", num_parts)
    table = pa.table([ids, range(len(ids))], schema=SCHEMA)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "BUFFER_BYTES", buffer_bytes)
        for start in range(0, len(ids), at_once):
            dealer.deal(table.slice(start, at_once), "image_id")
        files = dealer.close()
    found = [store.read(chunks_of(files, part), SCHEMA).to_pylist() for part in range(num_parts)]
    parts = parts_of(table["image_id"], num_parts).tolist()
    wanted = [
        [row for row, at in zip(table.to_pylist(), parts, strict=True) if at == part] for part in range(num_parts)
    ]
    assert found == wanted


def test_the_buffer_does_not_grow_with_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "BUFFER_BYTES", 10_000)
    largest = {}
    for num_tables in (10, 100):
        store, sizes = ChunkStore(Uri(str(tmp_path))), []
        dealer = Dealer(store, f"x{num_tables}", 16)
        for start in range(0, 100 * num_tables, 100):
            ids = np.arange(start, start + 100)
            dealer.deal(pa.table([ids, ids], schema=SCHEMA), "image_id")
            sizes.append(dealer._size_bytes)
        assert len(dealer.close()) == -(-num_tables * 1600 // 11_200)
        largest[num_tables] = max(sizes)
    assert largest[10] == largest[100] < 10_000


def test_nothing_is_read_for_an_empty_slice(tmp_path: Path) -> None:
    store = ChunkStore(Uri(str(tmp_path)))
    file = store.write("a", pa.table([[1], [2]], schema=SCHEMA), np.array([1]), 3)
    assert (np.diff(file.offsets) > 0).tolist() == [False, True, False]
    (tmp_path / "a").unlink()
    assert store.read([file.part(0), file.part(2)], SCHEMA).equals(SCHEMA.empty_table())
    assert store.write("b", SCHEMA.empty_table(), np.array([], np.int64), 2).offsets.tolist() == [0, 0, 0]
