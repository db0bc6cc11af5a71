from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.evaluate.shuffle import id_order
from pipeline.evaluate.shuffle.chunks import ChunkStore, chunks_of
from pipeline.evaluate.shuffle.id_order import ORDER_SCHEMA, IdOrder
from pipeline.storage.uris import Uri


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ids=st.lists(st.text(), max_size=40, unique=True), at_once=st.integers(1, 9))
def test_ranks_are_those_of_pythons_order(ids: list[str], at_once: int, tmp_path: Path) -> None:
    store, num_parts = ChunkStore(Uri(str(tmp_path))), 3
    order = IdOrder(store)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(id_order, "SORTED_BYTES", 100)
        patch.setattr(id_order, "CHUNK_IDS", 2)
        for start in range(0, len(ids), at_once):
            order.add(pa.chunked_array([ids[start : start + at_once]], pa.large_string()))
        files = order.deal(num_parts)
    found = {
        row["image_id"]: row["order"]
        for part in range(num_parts)
        for row in store.read(chunks_of(files, part), ORDER_SCHEMA).to_pylist()
    }
    assert found == {id_: rank for rank, id_ in enumerate(sorted(ids))}
