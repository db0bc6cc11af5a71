"""Rows dealt into parts, and read again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.tables.dealt import DealtRows


def test_each_part_has_its_rows_in_their_order(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    numbers, parts = np.arange(1000), rng.integers(0, 5, 1000)
    with DealtRows(tmp_path) as dealt:
        for start in range(0, 1000, 300):
            table = pa.table(
                {"number": numbers[start : start + 300], "text": [f"{i}" for i in numbers[start : start + 300]]}
            )
            dealt.add(table, parts[start : start + 300])
    for part in range(5):
        table = dealt.read(part)
        assert table is not None
        assert table["number"].to_pylist() == numbers[parts == part].tolist()
        assert table["text"].to_pylist() == [f"{i}" for i in numbers[parts == part]]
        assert sum(some.num_rows for some in dealt.batches(part)) == table.num_rows
    assert dealt.read(5) is None
    assert list(dealt.batches(5)) == []
