from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.tables.ids import hash_ids
from tests.annotate.pending.id_cases import texts


@settings(max_examples=60, deadline=None)
@given(ids=st.lists(texts, min_size=1, max_size=30), before=st.integers(0, 5), after=st.integers(0, 5))
@example(ids=["", "a", "\x00", "\x00\x00", "a\x00", "b" * 8, "b" * 7, "b" * 9], before=1, after=1)
def test_equal_ids_hash_alike_wherever_they_stand(ids: list[str], before: int, after: int) -> None:
    alone = [hash_ids(pa.array([value], pa.large_string()))[0] for value in ids]
    padded = pa.array(["other"] * before + ids + ["x"] * after, pa.large_string())
    together = hash_ids(padded.slice(before, len(ids)))
    assert together.tolist() == alone
    assert len(set(alone)) == len(set(ids))


@pytest.mark.parametrize(
    "ids",
    [
        pa.array(np.arange(100_000)),
        pa.array(np.arange(100_000) << 32),
        pa.array([f"s3://bucket/some/long/prefix/{i:08d}/image.jpg" for i in range(100_000)], pa.large_string()),
    ],
    ids=["counting", "counting in the upper half", "texts that differ in the middle"],
)
def test_hash_deals_evenly(ids: pa.Array) -> None:
    sizes = np.bincount((hash_ids(ids) % 64).astype(int), minlength=64)
    assert 1300 < sizes.min() < sizes.max() < 1850  # 1562 each, 7 standard deviations
