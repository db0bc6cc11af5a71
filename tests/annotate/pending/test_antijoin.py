from __future__ import annotations

import os
import pickle
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.annotate.config import ManifestConfig
from pipeline.annotate.manifest.open import Manifest, open_manifest
from pipeline.annotate.manifest.rules import Columns, ManifestError, ReadUnit
from pipeline.annotate.pending import antijoin
from pipeline.annotate.pending.antijoin import DuplicateIdError, Pending, find_pending
from pipeline.storage.uris import Uri
from tests.annotate.pending.id_cases import texts

Id = int | str
MEMORY_ROWS = {"in memory": 10**6, "spilled": 1}
both_ways = pytest.mark.parametrize("memory_rows", MEMORY_ROWS.values(), ids=MEMORY_ROWS.keys())

integers = st.integers(-(2**63), 2**63 - 1) | st.integers(-20, 20)


def manifest_of(folder: Path, ids: Sequence[Id], rows_per_unit: int = 3) -> Manifest:
    path = folder / "manifest.parquet"
    kind = pa.int64() if isinstance(ids[0], int) else pa.string()
    table = pa.table({"image_id": pa.array(ids, kind), "image_uri": ["/x"] * len(ids)})
    pq.write_table(table, path, row_group_size=rows_per_unit)
    return open_manifest(ManifestConfig(uri=str(path)), Uri(str(folder / "scratch")))


def arrays_of(ids: Sequence[Id], length: int, kind: pa.DataType) -> list[pa.Array]:
    return [pa.array(ids[start : start + length], kind) for start in range(0, len(ids), length)]


def pending_ids(manifest: Manifest, pending: Pending) -> list[Id]:
    found: list[Id] = []
    for unit, rows in pending.units:
        assert len(rows)
        assert np.all(np.diff(rows) > 0)
        found += manifest.read_ids(unit).take(pa.array(rows)).to_pylist()
    return found


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.differing_executors])
@given(data=st.data(), kind=st.sampled_from([integers, texts]), memory_rows=st.sampled_from([1, 7, 40, 10**6]))
def test_equals_a_set_difference(data: st.DataObject, kind: st.SearchStrategy[Id], memory_rows: int) -> None:
    ids = data.draw(st.lists(kind, min_size=1, max_size=60, unique=True), "manifest")
    done = data.draw(st.lists(st.sampled_from(ids) | kind, max_size=60), "done")
    with tempfile.TemporaryDirectory() as folder:
        manifest = manifest_of(Path(folder), ids, data.draw(st.integers(1, 25)))
        arrays = arrays_of(done, data.draw(st.integers(1, 30)), manifest.id_type)
        pending = find_pending(manifest, iter(arrays), memory_rows=memory_rows, tmp_dir=folder)
        assert pending_ids(manifest, pending) == [value for value in ids if value not in set(done)]
        assert not [name for name in os.listdir(folder) if name.startswith("antijoin")]
    known, unknown = set(done) & set(ids), set(done) - set(ids)
    assert (pending.num_rows, pending.num_done, pending.num_pending) == (len(ids), len(known), len(ids) - len(known))
    assert pending.unknown_done.count == len(unknown)
    assert pending.duplicate_done.count == len(done) - len(set(done))
    repeated = {value for value, count in Counter(done).items() if count > 1}
    for sample, everything in ((pending.unknown_done, unknown), (pending.duplicate_done, repeated)):
        assert len(set(sample.first)) == len(sample.first) == min(5, len(everything))
        assert set(sample.first) <= set(map(repr, everything))


class TestManifest:
    @both_ways
    def test_nothing_done_and_everything_done(self, tmp_path: Path, memory_rows: int) -> None:
        ids = ["a", "b", "c", "d", "e", "f", "g"]
        manifest = manifest_of(tmp_path, ids)
        pending = find_pending(manifest, [], memory_rows=memory_rows)
        assert [(unit, rows.tolist()) for unit, rows in pending.units] == [
            (manifest.units[0], [0, 1, 2]),
            (manifest.units[1], [0, 1, 2]),
            (manifest.units[2], [0]),
        ]
        pending = find_pending(manifest, [pa.array(ids[::-1])], memory_rows=memory_rows)
        assert pending.units == []
        assert (pending.num_pending, pending.num_done, pending.unknown_done.count) == (0, 7, 0)

    @both_ways
    def test_duplicates_are_named_with_counts_and_places(self, tmp_path: Path, memory_rows: int) -> None:
        ids = [9, 1, 2, 1, 3, 2, 1, 4, 5, 4, 6, 6, 7, 7, 8, 8]
        manifest = manifest_of(tmp_path, ids)
        with pytest.raises(DuplicateIdError) as raised:
            find_pending(manifest, [pa.array([1, 2, 3])], memory_rows=memory_rows)
        message = str(raised.value)
        assert "6 image ids occur more than once: 1 3 times (first in " in message
        assert "row group 0, row 2), 2 2 times (first in " in message
        assert "row group 2, row 2), 6 2 times" in message
        assert ", 7 2 times" in message
        assert ", 8 2 times" not in message
        assert " and 1 more. Every image needs an id of its own: remove" in message
        assert isinstance(pickle.loads(pickle.dumps(raised.value)), DuplicateIdError)  # noqa: S301

    def test_duplicates_in_messages_are_redacted(self, tmp_path: Path) -> None:
        manifest = manifest_of(tmp_path, ["https://host/a.jpg?signature=secret"] * 2)
        with pytest.raises(DuplicateIdError, match=r"'https://host/a\.jpg' 2 times") as raised:
            find_pending(manifest, [])
        assert "secret" not in str(raised.value)

    @both_ways
    def test_ids_that_look_alike_are_different(self, tmp_path: Path, memory_rows: int) -> None:
        ids = ["a", "a\x00", "A", "ä", "a\u0308", " a", "1", "01", "1.0"]
        manifest = manifest_of(tmp_path, ids)
        done = [pa.array(["a", "ä", "1"])]
        pending = find_pending(manifest, done, memory_rows=memory_rows)
        assert pending_ids(manifest, pending) == ["a\x00", "A", "a\u0308", " a", "01", "1.0"]


class TestDone:
    @pytest.mark.parametrize(
        ("ids", "done"),
        [
            ([1, 2, 3], pa.array([1, 3], pa.int32())),
            ([1, 2, 3], pa.chunked_array([[1], [3]])),
            (["1", "2", "3"], pa.array(["1", "3"], pa.large_string())),
            (["1", "2", "3"], pa.array(["1", "3"]).dictionary_encode()),
            (["1", "2", "3"], pa.array(["0", "1", "3", "4"]).slice(1, 2)),
        ],
        ids=["int32", "chunked", "large string", "dictionary", "slice"],
    )
    @both_ways
    def test_types_that_are_the_same_ids(self, tmp_path: Path, ids: list[Id], done: Any, memory_rows: int) -> None:
        manifest = manifest_of(tmp_path, ids)
        pending = find_pending(manifest, [done], memory_rows=memory_rows)
        assert pending_ids(manifest, pending) == [ids[1]]
        assert pending.unknown_done.count == 0

    @pytest.mark.parametrize(
        ("ids", "done", "message"),
        [
            ([1], pa.array(["1"]), "the output's image ids are string, the manifest's are int64"),
            (["1"], pa.array([1]), "the output's image ids are int64, the manifest's are string"),
            (["1"], pa.array([1.0]), "the output's image ids are double, the manifest's are string"),
            ([1], pa.array([1, None]), "rows without an image id"),
        ],
        ids=["string for int", "int for string", "float", "null"],
    )
    def test_ids_that_cannot_be_compared(self, tmp_path: Path, ids: list[Id], done: pa.Array, message: str) -> None:
        with pytest.raises(ManifestError, match=message):
            find_pending(manifest_of(tmp_path, ids), [done])

    def test_more_done_than_fits_spills_although_the_manifest_would_fit(self, tmp_path: Path) -> None:
        manifest = manifest_of(tmp_path, list(range(10)))
        done = (pa.array([i, i + 1]) for i in range(100))
        pending = find_pending(manifest, done, memory_rows=50)
        assert (pending.num_pending, pending.unknown_done.count, pending.duplicate_done.count) == (0, 91, 99)


def test_memory_stays_bounded_when_spilling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    num_rows, memory_rows, rows_per_unit = 200_000, 10_000, 5_000
    units = tuple(ReadUnit(Uri("none"), index, rows_per_unit) for index in range(num_rows // rows_per_unit))

    def ids_of(unit: ReadUnit) -> pa.Array:
        start = unit.row_group * rows_per_unit
        return pa.array([f"some/long/prefix/{i:015d}" for i in range(start, start + rows_per_unit)])

    class Generated(Manifest):
        def read_ids(self, unit: ReadUnit) -> pa.Array:
            return ids_of(unit)

    manifest = Generated("none", units, Columns("image_id", None, None), pa.string(), pa.schema([]), None)
    pool, peak = pa.default_memory_pool(), 0
    before = pool.bytes_allocated()
    join = antijoin._Result.join

    def spy(self: Any, *args: Any) -> None:
        nonlocal peak
        join(self, *args)
        peak = max(peak, pool.bytes_allocated() - before)

    monkeypatch.setattr(antijoin._Result, "join", spy)
    done = (ids_of(unit) for unit in units[::2])
    pending = find_pending(manifest, done, memory_rows=memory_rows, tmp_dir=str(tmp_path))
    assert pending.num_pending == num_rows // 2
    assert peak < 2e6  # the manifest's ids alone are 8 MB


def test_pending_is_small_and_picklable(tmp_path: Path) -> None:
    manifest = manifest_of(tmp_path, list(range(80_000)), rows_per_unit=40_000)
    pending = find_pending(manifest, [pa.array([5])])
    pickled = pickle.dumps(pending)
    assert len(pickled) < 12_000
    again = pickle.loads(pickled)  # noqa: S301
    assert [(unit, rows.tolist()) for unit, rows in again.iter_units()] == [
        (unit, rows.tolist()) for unit, rows in pending.units
    ]
