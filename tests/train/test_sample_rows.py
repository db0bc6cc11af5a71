from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.train.data.draws import Drawn
from pipeline.train.data.labelled import DataError
from pipeline.train.feed import error_row, from_rows, to_rows
from tests.train.sample_cases import assert_equal, random_sample

SIZES = st.tuples(st.integers(8, 40), st.integers(8, 40))


@given(st.lists(st.tuples(st.integers(0, 999), SIZES, st.integers(0, 5)), min_size=1, max_size=4), st.integers(0, 3))
def test_samples_come_back_as_they_were(cases: list[tuple[int, tuple[int, int], int]], first: int) -> None:
    """Also from a part of a table, as batches are."""
    drawn = [Drawn(random_sample(*case)) for case in cases]
    first = min(first, len(drawn) - 1)
    for back, one in zip(from_rows(to_rows(drawn).slice(first)), drawn[first:], strict=True):
        assert_equal(back.sample, one.sample)
        assert back.unreadable == ()


def test_ids_and_reasons_keep_their_kinds() -> None:
    unreadable = ((7, "gone"), ("ä/7.jpg", "not found"))
    (back,) = from_rows(to_rows([Drawn(random_sample(1, (20, 30), 2), unreadable)]))
    assert back.unreadable == unreadable


def test_tables_with_and_without_objects_go_together() -> None:
    tables = [to_rows([Drawn(random_sample(seed, (16, 16), seed))]) for seed in (0, 3)]
    counts = [len(drawn.sample.labels) for drawn in from_rows(pa.concat_tables(tables))]
    assert counts == [0, len(random_sample(3, (16, 16), 3).labels)]


def test_pixels_are_not_copied() -> None:
    rows = to_rows([Drawn(random_sample(1, (20, 30), 2))])
    (back,) = from_rows(rows)
    pixels = np.frombuffer(rows["pixels"].chunk(0).buffers()[2], np.uint8)
    assert np.shares_memory(back.sample.pixels, pixels)


def test_an_error_is_raised_where_it_is_read() -> None:
    good = to_rows([Drawn(random_sample(1, (20, 30), 2))])
    drawn = from_rows(pa.concat_tables([good, error_row(DataError("image 5: no"))]))
    next(drawn)
    with pytest.raises(DataError, match=r"^image 5: no$"):
        next(drawn)
