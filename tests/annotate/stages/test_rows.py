"""Rows between the stages: errors that fit a column, and pixels that cross without a copy."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.annotate.stages.rows import error_arrays
from pipeline.annotations.failure import MAX_MESSAGE_LENGTH, ImageFailure
from pipeline.tables.binary import binary_array, binary_views


def as_bytes(views: list[memoryview | None]) -> list[bytes | None]:
    return [None if view is None else bytes(view) for view in views]


@pytest.mark.parametrize(
    ("length", "kept"),
    [
        pytest.param(0, 0, id="empty"),
        pytest.param(MAX_MESSAGE_LENGTH, MAX_MESSAGE_LENGTH, id="just fits"),
        pytest.param(MAX_MESSAGE_LENGTH + 1, MAX_MESSAGE_LENGTH - 1, id="one too many"),
        pytest.param(10_000, MAX_MESSAGE_LENGTH - 1, id="a whole traceback"),
    ],
)
def test_message_is_cut(length: int, kept: int) -> None:
    message = ImageFailure("fetch", "failed", "x" * length).message
    assert message == "x" * kept + ("…" if kept < length else "")
    assert len(message) <= MAX_MESSAGE_LENGTH


def test_error_is_a_value() -> None:
    error = ImageFailure("fetch", "not_found", "gone")
    assert error == ImageFailure("fetch", "not_found", "gone")
    with pytest.raises(dataclasses.FrozenInstanceError):
        error.code = "other"  # type: ignore[misc]


def test_error_arrays() -> None:
    stage, code, message = error_arrays([None, ImageFailure("decode", "corrupt_image", "cut"), None])
    assert stage.to_pylist() == [None, "decode", None]
    assert code.to_pylist() == [None, "corrupt_image", None]
    assert message.to_pylist() == [None, "cut", None]


@pytest.mark.parametrize("errors", [[], [None, None]], ids=["no rows", "no errors"])
def test_error_arrays_are_strings_without_any_error(errors: list[ImageFailure | None]) -> None:
    for array in error_arrays(errors):
        assert array.type == pa.string()
        assert array.to_pylist() == errors


ARRAYS: dict[str, list[np.ndarray | None]] = {
    "none": [],
    "all null": [None, None],
    "mixed": [np.arange(6, dtype=np.uint8).reshape(1, 2, 3), None, np.zeros((0, 4), np.float32), np.ones(2, np.int64)],
    "no bytes at all": [np.zeros(0, np.float32), np.zeros((0, 28, 28), np.float32)],
    "not contiguous": [np.arange(12, dtype=np.float32).reshape(3, 4).T, np.arange(10, dtype=np.uint8)[::2]],
}


@pytest.mark.parametrize("values", ARRAYS.values(), ids=ARRAYS)
def test_there_and_back(values: list[np.ndarray | None]) -> None:
    array = binary_array(values)
    array.validate(full=True)
    assert array.type == pa.large_binary()
    assert array.null_count == sum(v is None for v in values)
    expected = [None if v is None else v.tobytes() for v in values]
    assert array.to_pylist() == expected
    assert as_bytes(binary_views(array)) == expected


CELLS = st.lists(st.none() | st.binary(max_size=5), max_size=8)


@given(chunks=st.lists(CELLS, max_size=4), start=st.integers(0, 10), length=st.integers(0, 12))
@settings(deadline=None, max_examples=200)
def test_views_of_chunks_and_slices(chunks: list[list[bytes | None]], start: int, length: int) -> None:
    column = pa.chunked_array([pa.array(chunk, pa.large_binary()) for chunk in chunks], pa.large_binary())
    expected = [cell for chunk in chunks for cell in chunk]
    assert as_bytes(binary_views(column)) == expected
    assert as_bytes(binary_views(column.slice(start, length))) == expected[start : start + length]


def test_views_are_no_copies() -> None:
    array = binary_array([np.zeros(8, np.uint8), np.arange(8, dtype=np.uint8)])
    data = array.buffers()[2]
    assert data is not None
    view = binary_views(array)[1]
    assert view is not None
    assert np.frombuffer(view, np.uint8).ctypes.data == data.address + 8
