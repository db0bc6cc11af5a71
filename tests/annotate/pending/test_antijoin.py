from __future__ import annotations

import os
import pickle
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
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
from pipeline.annotate.pending.antijoin import Audit, DuplicateIdError, Pending, find_pending
from pipeline.annotations.data_file import OutputError, data_file_name, encode_data_file
from pipeline.annotations.ledger import OutputStore
from pipeline.storage.objects.base import Entry, Listing
from pipeline.storage.objects.local import LocalObjects
from pipeline.storage.uris import Uri
from tests.annotate.pending.id_cases import texts
from tests.annotations.output_cases import IDENTITY, output_table

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


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.differing_executors])
@given(data=st.data(), kind=st.sampled_from([integers, texts]), memory_rows=st.sampled_from([1, 7, 40, 10**6]))
def test_two_steps_equal_one(data: st.DataObject, kind: st.SearchStrategy[Id], memory_rows: int) -> None:
    """What is done in two parts, of which the second has nothing but what the first left."""
    ids = data.draw(st.lists(kind, min_size=1, max_size=60, unique=True), "manifest")
    done = data.draw(st.lists(st.sampled_from(ids), max_size=60, unique=True), "done")
    surplus = data.draw(st.lists(st.sampled_from(ids) | kind, max_size=10), "surplus")
    cut = data.draw(st.integers(0, len(done)))
    with tempfile.TemporaryDirectory() as folder:
        manifest = manifest_of(Path(folder), ids, data.draw(st.integers(1, 25)))
        first, second, more = (pa.array(part, manifest.id_type) for part in (done[:cut], done[cut:], surplus))
        whole = find_pending(manifest, [pa.array(done, manifest.id_type)], memory_rows=memory_rows, tmp_dir=folder)
        before = find_pending(manifest, [first], memory_rows=memory_rows, tmp_dir=folder)
        after = find_pending(manifest, [second], among=before, memory_rows=memory_rows, tmp_dir=folder)
        assert told(after) == told(whole)
        again = find_pending(manifest, [more], among=after, memory_rows=memory_rows, tmp_dir=folder)
    pending = set(ids) - set(done)
    assert again.unknown_done.count == len(set(surplus) - pending), "what was done counts as unknown"
    assert again.duplicate_done.count == len(surplus) - len(set(surplus))


def told(pending: Pending) -> tuple[Any, ...]:
    """All that is in the books; examples where there are no others."""
    found = (pending.duplicate_done, pending.unknown_done)
    examples = [(each.count, sorted(each.first) if each.count <= len(each.first) else None) for each in found]
    units = [(unit, rows.tolist()) for unit, rows in pending.iter_units()]
    return units, pending.num_rows, pending.num_pending, pending.num_done, examples


class Reads(OutputStore):
    """Writes down which files' ids are asked for."""

    asked: list[set[str]]

    def iter_ids(self, files: Iterable[Entry], columns: Sequence[str] = ("image_id",)) -> Iterator[pa.Table]:
        files = list(files)
        self.asked.append({entry.name for entry in files})
        return super().iter_ids(files, columns)


def reads(uri: Uri) -> Reads:
    store = Reads(uri)
    object.__setattr__(store, "asked", [])
    return store


KNOWN, UNKNOWN = range(12), range(12, 18)
CHANGES = ("write", "write", "write what is pending", "remove", "write again", "double", "strip")


class TestAudit:
    """After whatever was done to the output between two looks, it finds what the join of everything finds."""

    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.differing_executors])
    @given(data=st.data())
    def test_equals_the_whole_join(self, data: st.DataObject) -> None:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            manifest = manifest_of(folder, list(KNOWN), 5)
            store = reads(Uri(str(folder / "out")))
            audit = Audit(manifest, store)
            for _ in range(data.draw(st.integers(2, 6), "looks")):
                for _ in range(data.draw(st.integers(0, 2), "changes")):
                    self.change(data, store, manifest)
                fresh = OutputStore(store.uri)
                done = (table["image_id"] for table in fresh.iter_ids(fresh.files().settled))
                assert told(audit.look(store.files())) == told(find_pending(manifest, done))

    def change(self, data: st.DataObject, store: OutputStore, manifest: Manifest) -> None:
        """One of `CHANGES`, to a file that is drawn or with ids that are."""
        kind = data.draw(st.sampled_from(CHANGES), "change")
        files = store.files()
        if kind in ("write", "write what is pending") or not files.footers:
            ids = data.draw(st.lists(st.sampled_from([*KNOWN, *UNKNOWN]), min_size=1, max_size=4, unique=True), "ids")
            if kind == "write what is pending":
                done = {i for table in store.iter_ids(files.settled) for i in table["image_id"].to_pylist()}
                ids = [i for i in ids if i in KNOWN and i not in done]
            if ids:
                store.write_rows(output_table(ids, failed=ids[:1]), IDENTITY)
            return
        entry = data.draw(st.sampled_from(sorted(files.footers)), "file")
        path = Path(str(store.uri)) / "data" / entry.name
        if kind == "remove":
            path.unlink()
            return
        if kind == "write again":
            content = path.read_bytes()
            path.unlink()
            path.write_bytes(content)
            return
        (table,) = store.iter_ids([entry])
        ids = table["image_id"].to_pylist()
        kept = ids if kind == "double" else ids[1:]
        if kept:
            rows, token = output_table(kept), f"{data.draw(st.integers(0, 2**32 - 1)):08x}"
            content = encode_data_file(rows, IDENTITY, 1, None if kind == "double" else {entry.name: 1})
            path.with_name(data_file_name(rows["image_id"], token)).write_bytes(content)

    @pytest.fixture
    def looked(self, tmp_path: Path) -> tuple[Audit, Reads, Manifest]:
        """Twelve images, of which two files hold six, and one that the manifest does not have; looked at once."""
        manifest = manifest_of(tmp_path, list(KNOWN), 5)
        store = reads(Uri(str(tmp_path / "out")))
        for ids in ([0, 1, 2], [3, 4, 5, 99]):
            store.write_rows(output_table(ids), IDENTITY)
        audit = Audit(manifest, store)
        found = audit.look(store.files())
        assert (found.num_pending, found.num_done, found.unknown_done.first) == (6, 6, ("99",))
        store.asked.clear()
        return audit, store, manifest

    def test_reads_what_is_new(self, looked: tuple[Audit, Reads, Manifest]) -> None:
        audit, store, manifest = looked
        first, second = (store.write_rows(output_table(ids), IDENTITY).name for ids in ([6, 7], [8, 11]))
        found = audit.look(store.files())
        assert (pending_ids(manifest, found), found.num_done, found.unknown_done.first) == ([9, 10], 10, ("99",))
        third = store.write_rows(output_table([9, 10]), IDENTITY).name
        found = audit.look(store.files())
        assert (found.units, found.num_done, found.unknown_done.count) == ([], 12, 1)
        assert store.asked == [{first, second}, {third}]

    @pytest.mark.parametrize(
        ("ids", "pending", "twice", "unknown"),
        [([6, 2], 5, 1, 1), ([6, 99], 5, 1, 1), ([6, 77], 5, 0, 2), ([0, 1, 2], 6, 0, 1)],
        ids=["done before", "unknown before", "unknown", "the same file again"],
    )
    def test_reads_all_for_a_row_that_was_not_pending(
        self, looked: tuple[Audit, Reads, Manifest], ids: list[int], pending: int, twice: int, unknown: int
    ) -> None:
        audit, store, _ = looked
        store.write_rows(output_table(ids), IDENTITY)
        files = store.files()
        found = audit.look(files)
        counts = found.num_pending, found.duplicate_done.count, found.unknown_done.count
        assert counts == (pending, twice, unknown)
        assert store.asked[-1] == {entry.name for entry in files.settled}

    def test_a_row_that_came_twice(self, looked: tuple[Audit, Reads, Manifest]) -> None:
        audit, store, _ = looked
        for ids in ([6, 7], [7, 8]):
            store.write_rows(output_table(ids), IDENTITY)
        found = audit.look(store.files())
        assert (found.num_pending, found.duplicate_done.first) == (3, ("7",))

    def test_rows_that_vanished(self, looked: tuple[Audit, Reads, Manifest]) -> None:
        audit, store, manifest = looked
        os.unlink(f"{store.uri}/data/{min(store.files().settled).name}")
        gone = {0, 1, 2, 3, 4, 5} - {
            i for t in store.iter_ids(store.files().settled) for i in t["image_id"].to_pylist()
        }
        store.write_rows(output_table([6]), IDENTITY)
        assert pending_ids(manifest, audit.look(store.files())) == sorted(gone | {7, 8, 9, 10, 11})

    def test_a_storage_that_tells_no_versions(
        self, looked: tuple[Audit, Reads, Manifest], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        _, store, manifest = looked
        listed = LocalObjects.list

        def unversioned(objects: LocalObjects, folder: str) -> Listing:
            files, folders = listed(objects, folder)
            return Listing([entry._replace(version="") for entry in files], folders)

        monkeypatch.setattr(LocalObjects, "list", unversioned)
        audit = Audit(manifest, store)
        for _ in range(2):
            assert audit.look(store.files()).num_pending == 6
        assert [len(names) for names in store.asked] == [2, 2]

    def test_a_new_file_is_damaged(self, looked: tuple[Audit, Reads, Manifest]) -> None:
        audit, store, _ = looked
        name = store.write_rows(output_table([6, 7]), IDENTITY).name
        path = Path(str(store.uri)) / "data" / name
        content = bytearray(path.read_bytes())
        content[10:40] = bytes(30)
        path.write_bytes(content)
        for _ in range(2):  # and what was known stays so
            with pytest.raises(OutputError, match=f"{name} is damaged"):
                audit.look(store.files())
        path.unlink()
        assert audit.look(store.files()).num_pending == 6


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
