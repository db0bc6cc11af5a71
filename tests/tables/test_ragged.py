from __future__ import annotations

import numpy as np

from pipeline.tables.ragged import elements_of, offsets_of, owners_of, positions_in


def test_lists_of_different_lengths() -> None:
    lengths = np.array([2, 0, 3])
    assert offsets_of(lengths).tolist() == [0, 2, 2, 5]
    assert owners_of(lengths).tolist() == [0, 0, 2, 2, 2]
    assert positions_in(lengths).tolist() == [0, 1, 0, 1, 2]
    assert elements_of(offsets_of(lengths), np.array([2, 1, 0])).tolist() == [2, 3, 4, 0, 1]


def test_no_lists() -> None:
    none = np.array([], np.int64)
    assert offsets_of(none).tolist() == [0]
    assert [len(owners_of(none)), len(positions_in(none)), len(elements_of(np.array([0]), none))] == [0, 0, 0]
