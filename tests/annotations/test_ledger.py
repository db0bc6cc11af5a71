from __future__ import annotations

import dataclasses
import json
import pickle
import random
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.annotations.data_file import Counts, OutputError, data_file_name, encode_data_file
from pipeline.annotations.ledger import IdentityMismatch, OutputStore
from pipeline.annotations.schema import made_by
from pipeline.storage.objects.base import Entry, ObjectFolder, ReadFailed
from pipeline.storage.objects.local import LocalObjects
from pipeline.storage.objects.open import open_objects
from pipeline.storage.uris import Uri
from tests.annotations.output_cases import IDENTITY, all_ids, output_table

ROOT = Path(__file__).parents[2]


def free() -> None:
    """A fence that nobody closes."""


@pytest.fixture(params=["local", "s3", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> OutputStore:
    if request.param == "local":
        return OutputStore(Uri(str(tmp_path / "out")))
    if request.param == "memory":
        return OutputStore(Uri(f"memory://{uuid.uuid4().hex}/out"))
    request.getfixturevalue("s3")
    return OutputStore(Uri(f"s3://bucket/{uuid.uuid4().hex}/out"), concurrency=4)


@pytest.fixture
def local(tmp_path: Path) -> OutputStore:
    return OutputStore(Uri(str(tmp_path / "out")))


def put_file(store: OutputStore, table: pa.Table, replaces: Mapping[str, int] | None = None, token: str = "") -> str:
    """Put a data file there, whatever the store thinks of it; its name."""
    name = data_file_name(table["image_id"], token)
    content = encode_data_file(table, IDENTITY, 1, replaces)
    open_objects(store.uri, 10.0).put(f"data/{name}", content)
    return name


def untouched(store: OutputStore) -> int:
    """How many files a recovery finds, which has nothing to do."""
    recovery = store.recover(free)
    assert not recovery
    return recovery.num_files


def data_names(store: OutputStore) -> list[str]:
    return [entry.name for entry in open_objects(store.uri, 10.0).list("data").files]


class TestEveryStore:
    def test_a_life(self, store: OutputStore) -> None:
        assert untouched(store) == 0
        assert store.files().identity() is None
        assert store.files().counts == Counts()
        store.files().check_identity(IDENTITY)
        files = [store.write_rows(output_table(range(n, n + 10), {n + 3, 12}), IDENTITY) for n in (0, 10, 20)]
        files.append(store.write_rows(output_table([30], {30}), IDENTITY))
        assert data_names(store) == sorted(file.name for file in files)
        assert untouched(store) == 4
        assert store.files().identity() == IDENTITY
        counts = store.files().counts
        assert (counts.annotated, counts.failed, counts.rows) == (26, 5, 31)
        assert counts.failures_by_code == {"not_found": 5}
        assert all_ids(store) == list(range(31))
        columns = next(store.iter_ids(store.files().settled, ("image_id", "status"))).column_names
        assert columns == ["image_id", "status"]

        assert store.strip_failed(free) == 5
        assert all_ids(store) == [i for i in range(31) if i not in (3, 12, 13, 23, 30)]
        assert store.files().counts == dataclasses.replace(counts, failed=0, failures_by_code={})
        assert store.strip_failed(free) == 0
        assert untouched(store) == 3

    def test_half_written_files_go(self, store: OutputStore) -> None:
        whole = store.write_rows(output_table([1, 2]), IDENTITY)
        objects = open_objects(store.uri, 10.0)
        content = objects.read(f"data/{whole.name}")[0]
        cut = {
            "empty": b"",
            "only the head": content[:4],
            "half": content[: len(content) // 2],
            "without the last byte": content[:-1],
            "without the footer's length": content[:-8],
        }
        names = {f"part-{n:020x}.parquet": text for n, text in enumerate(cut.values())}
        for name, text in names.items():
            objects.put(f"data/{name}", text)
        with pytest.raises(OutputError, match="cut off"):
            store.files()
        recovery = store.recover(free)
        assert recovery
        assert set(recovery.half_written) == set(names)
        assert recovery.num_files == 1
        assert data_names(store) == [whole.name]
        assert not store.recover(free)

    def test_damaged_files_stay(self, store: OutputStore) -> None:
        """They end as a Parquet file does, so they were whole once, and may hold rows that can be saved."""
        whole = store.write_rows(output_table([1, 2]), IDENTITY)
        objects = open_objects(store.uri, 10.0)
        content = objects.read(f"data/{whole.name}")[0]
        footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
        damaged = {
            "garbage before the magic": b"PAR1" + b"\xff" * 200 + b"PAR1",
            "a length that does not fit": content[:-8] + (len(content) - 11).to_bytes(4, "little") + b"PAR1",
            "zeros where the footer begins": content[:footer] + bytes(64) + content[footer + 64 :],
            "zeros all over": bytes(len(content) - 8) + content[-8:],
        }
        name = f"part-{0:020x}.parquet"
        for text in damaged.values():
            objects.put(f"data/{name}", text)
            for act in (store.files, lambda: store.recover(free), lambda: store.strip_failed(free)):
                with pytest.raises(OutputError, match=rf"data/{name} is damaged .*Move it away and run annotate again"):
                    act()
            assert objects.read(f"data/{name}")[0] == text
        objects.delete(f"data/{name}")
        assert not store.recover(free)
        assert store.files().counts.rows == 2


class TestWriteRows:
    def test_the_name_follows_from_the_ids_and_their_order(self, local: OutputStore) -> None:
        file = local.write_rows(output_table([1, 2, 3], {2}), IDENTITY)
        again = local.write_rows(output_table([1, 2, 3]), dataclasses.replace(IDENTITY, run_id="run-2"))
        assert again.name == file.name
        assert local.files().counts == Counts(3, 0, {}, local.files().counts.detections_by_category)
        assert local.files().identity() == dataclasses.replace(IDENTITY, run_id="run-2")
        assert local.write_rows(output_table([2, 1, 3]), IDENTITY).name != file.name

    def test_ids_that_join_to_the_same_text(self) -> None:
        names = {
            data_file_name(pa.chunked_array([ids]))
            for ids in ([1, 23], [12, 3], [123], ["1", "23"], ["1,2", "3"], ["1", "2,3"], ["1:1,", "2"])
        }
        assert len(names) == 7

    def test_the_footer_of_the_file(self, local: OutputStore) -> None:
        file = local.write_rows(output_table(range(5000)), IDENTITY, compression_level=1)
        path = f"{local.uri}/data/{file.name}"
        metadata = pq.read_metadata(path)
        assert metadata.num_rows == file.num_rows == 5000
        assert metadata.num_row_groups == 3
        assert Path(path).stat().st_size == file.size_bytes
        assert metadata.row_group(0).column(0).compression == "ZSTD"
        keys = {key.decode(): value.decode() for key, value in metadata.metadata.items() if b"maskfleet" in key}
        assert keys["maskfleet.schema_version"] == "2"
        assert keys["maskfleet.weights_sha256"] == "a" * 64
        assert keys["maskfleet.config_digest"] == "c" * 64
        assert json.loads(keys["maskfleet.content_config"]) == {"model": {"threshold": 0.05}}
        assert keys["maskfleet.model_name"] == "swin"
        assert keys["maskfleet.code_version"] == "0.1"
        assert keys["maskfleet.run_id"] == "run-1"

    def test_counts_equal_the_data(self, local: OutputStore) -> None:
        local.write_rows(output_table(["a", "b", "c", "d"], {"c"}), IDENTITY)
        rows = pq.read_table(f"{local.uri}/data").to_pylist()
        categories = [d["category_id"] for row in rows for d in row["detections"] or []]
        assert local.files().counts == Counts(3, 1, {"not_found": 1}, {c: categories.count(c) for c in set(categories)})

    @pytest.mark.parametrize("ids", [[], [1, 1], ["a", None]], ids=["no rows", "an id twice", "a null id"])
    def test_tables_that_break_the_contract(self, local: OutputStore, ids: list[Any]) -> None:
        table = output_table([1]).schema.empty_table() if not ids else output_table(ids)
        with pytest.raises(ValueError, match="at least one row"):
            local.write_rows(table, IDENTITY)

    def test_an_unknown_status(self, local: OutputStore) -> None:
        table = output_table([1])
        table = table.set_column(table.column_names.index("status"), "status", pa.array(["done"]))
        with pytest.raises(ValueError, match="done"):
            local.write_rows(table, IDENTITY)

    def test_the_fence_stands_before_the_write(self, local: OutputStore) -> None:
        def closed() -> None:
            raise RuntimeError("lock lost")

        with pytest.raises(RuntimeError, match="lock lost"):
            local.write_rows(output_table([1]), IDENTITY, fence=closed)
        assert data_names(local) == []
        local.write_rows(output_table([1]), IDENTITY, fence=lambda: None)
        assert len(data_names(local)) == 1

    def test_a_pickled_store_is_the_same_store(self, local: OutputStore) -> None:
        local.write_rows(output_table([1]), IDENTITY)
        local.files()
        copy = pickle.loads(pickle.dumps(local))  # noqa: S301
        assert copy == local
        assert copy.files().counts == local.files().counts
        assert len(pickle.dumps(local)) < 300


class TestForeignFiles:
    @pytest.mark.parametrize("name", ["data.parquet", "part-0.parquet", "deeper/part.parquet", "notes.txt"])
    def test_are_an_error_and_stay(self, local: OutputStore, name: str) -> None:
        local.write_rows(output_table([1]), IDENTITY)
        objects = open_objects(local.uri, 1.0)
        objects.put(f"data/{name}", b"somebody's")
        objects.put("data/part-00000000000000000000.parquet", b"cut off")
        for call in (lambda: local.recover(free), local.files, lambda: local.strip_failed(free)):
            with pytest.raises(OutputError, match=name.split("/")[0]):
                call()
        assert objects.read(f"data/{name}")[0] == b"somebody's"
        assert "part-00000000000000000000.parquet" in data_names(local)

    def test_hidden_ones_are_left_alone(self, local: OutputStore) -> None:
        local.write_rows(output_table([1]), IDENTITY)
        objects = open_objects(local.uri, 1.0)
        hidden = [".DS_Store", "_SUCCESS", ".nfs000001", ".part-x.tmp", ".git/config"]
        for name in hidden:
            objects.put(f"data/{name}", b"")
        assert untouched(local) == 1
        assert {n for n in hidden if "/" not in n} <= set(data_names(local))

    def test_parquet_of_others_under_a_name_of_ours(self, local: OutputStore) -> None:
        name = "part-00000000000000000000.parquet"
        local.write_rows(output_table([1]), IDENTITY)
        pq.write_table(pa.table({"image_id": [1]}), f"{local.uri}/data/{name}")
        with pytest.raises(OutputError, match=name):
            local.recover(free)
        assert name in data_names(local)

    def test_many_are_counted(self, local: OutputStore) -> None:
        for n in range(15):
            open_objects(local.uri, 1.0).put(f"data/x{n:02d}", b"")
        with pytest.raises(OutputError, match=r"x00, .*x04 and 10 more\. Move"):
            local.recover(free)


class TestIdentity:
    def test_what_may_differ(self, local: OutputStore) -> None:
        local.write_rows(output_table([1]), IDENTITY)
        local.write_rows(output_table([2]), dataclasses.replace(IDENTITY, run_id="run-2", code_version="0.2"))
        local.files().check_identity(dataclasses.replace(IDENTITY, run_id="run-3", model_name="other name"))
        local.files().check_identity(IDENTITY, output_table([3]).schema)

    def test_settings_key_by_key(self, local: OutputStore) -> None:
        def identity(config: dict[str, Any], digest: str) -> Any:
            return dataclasses.replace(IDENTITY, content_config=json.dumps(config), config_digest=digest)

        before = {"detect": {"threshold": 0.05, "classes": ["a"]}, "exif": True, "gone": {}}
        after = {"detect": {"threshold": 0.5, "classes": ["a"]}, "exif": True, "new": {"x": None}}
        local.write_rows(output_table([1]), identity(before, "1"))
        with pytest.raises(IdentityMismatch) as caught:
            local.files().check_identity(identity(after, "2"))
        assert caught.value.differences == (
            "detect.threshold: 0.05 -> 0.5",
            "gone: {} -> (not set)",
            "new.x: (not set) -> null",
        )
        assert "detect.threshold: 0.05 -> 0.5" in str(caught.value)
        assert "another output" in str(caught.value)
        copy = pickle.loads(pickle.dumps(caught.value))  # noqa: S301
        assert (str(copy), copy.differences) == (str(caught.value), caught.value.differences)

    def test_weights(self, local: OutputStore) -> None:
        local.write_rows(output_table([1]), IDENTITY)
        with pytest.raises(IdentityMismatch) as caught:
            local.files().check_identity(dataclasses.replace(IDENTITY, weights_sha256="b" * 64, model_name="swin-l"))
        assert caught.value.differences == (
            f"weights_sha256: {'a' * 64} -> {'b' * 64}",
            "model_name: swin -> swin-l",
        )

    def test_schema_version(self, local: OutputStore, monkeypatch: pytest.MonkeyPatch) -> None:
        local.write_rows(output_table([1]), IDENTITY)
        monkeypatch.setattr("pipeline.annotations.data_file.READABLE_VERSIONS", ("3",))
        monkeypatch.setattr("pipeline.annotations.data_file.SCHEMA_VERSION", "3")
        with pytest.raises(IdentityMismatch, match="schema_version: 2 -> 3"):
            local.files().check_identity(IDENTITY)

    def test_columns(self, local: OutputStore) -> None:
        local.write_rows(output_table([1], carried=pa.table({"a": [1], "b": ["x"]})), IDENTITY)
        local.files().check_identity(IDENTITY)
        with pytest.raises(IdentityMismatch) as caught:
            local.files().check_identity(
                IDENTITY, output_table(["1"], carried=pa.table({"b": ["x"], "c": [1.5]})).schema
            )
        assert caught.value.differences == (
            "column image_id: int64 -> string",
            "column a: int64 -> (none)",
            "column c: (none) -> double",
        )
        with pytest.raises(IdentityMismatch, match="in another order"):
            local.files().check_identity(IDENTITY, output_table([1], carried=pa.table({"b": ["x"], "a": [1]})).schema)

    def test_files_that_disagree(self, local: OutputStore) -> None:
        one = local.write_rows(output_table([1]), IDENTITY)
        two = local.write_rows(output_table([2]), dataclasses.replace(IDENTITY, weights_sha256="b" * 64))
        for call in (local.files().identity, lambda: local.files().check_identity(IDENTITY)):
            with pytest.raises(OutputError, match="do not belong together") as caught:
                call()
            assert one.name in str(caught.value)
            assert two.name in str(caught.value)

    def test_a_carried_column_of_another_type(self, local: OutputStore) -> None:
        local.write_rows(output_table([1], carried=pa.table({"a": [1]})), IDENTITY)
        local.write_rows(output_table([2], carried=pa.table({"a": ["1"]})), IDENTITY)
        with pytest.raises(OutputError, match="schemas"):
            local.files().identity()


class Crash(BaseException):
    """The process dies here."""


class Crashing(ObjectFolder):
    """Dies before the change number ``left`` + 1; or before that request, if reads count as well."""

    def __init__(self, inner: ObjectFolder, left: int, reads_count: bool) -> None:
        self.inner = inner
        self.left = left
        self.reads_count = reads_count

    def _change(self) -> None:
        if self.left == 0:
            raise Crash
        self.left -= 1

    def _read(self) -> None:
        if self.reads_count:
            self._change()

    def modified_at(self, name: str) -> Any:
        raise NotImplementedError

    def put(self, name: str, content: Any) -> None:
        self._change()
        self.inner.put(name, content)

    def delete(self, name: str, seen: Entry | None = None) -> None:
        self._change()
        self.inner.delete(name, seen)

    def delete_empty_folder(self, folder: str) -> None:
        raise NotImplementedError

    def list(self, folder: str) -> Any:
        self._read()
        return self.inner.list(folder)

    def read(self, name: str, max_bytes: int | None = None) -> Any:
        self._read()
        return self.inner.read(name, max_bytes)

    def read_range(self, name: str, start: int, stop: int) -> bytes:
        self._read()
        return self.inner.read_range(name, start, stop)

    def create(self, name: str, content: bytes) -> str:
        raise NotImplementedError

    def replace(self, name: str, content: bytes, version: str) -> str:
        raise NotImplementedError


def crashing_after(store: OutputStore, left: int, reads_count: bool = False) -> OutputStore:
    """The same folder, written by a process that lives for so many changes, or requests."""
    objects = Crashing(open_objects(store.uri, 10.0), left, reads_count)

    class Dying(OutputStore):
        def _open(self) -> ObjectFolder:
            return objects

    return Dying(store.uri, concurrency=1)


def check_books(store: OutputStore, annotated: set[int], failed: set[int]) -> None:
    ids = all_ids(store)
    assert len(ids) == len(set(ids)), "an id twice"
    assert annotated <= set(ids) <= annotated | failed


FILES = st.lists(st.lists(st.booleans(), min_size=1, max_size=4), max_size=4)


class TestStripFailed:
    @pytest.mark.parametrize("changes", range(8))
    @pytest.mark.parametrize("kind", ["local", "s3"])
    def test_a_crash_at_every_step(
        self, request: pytest.FixtureRequest, tmp_path: Path, kind: str, changes: int
    ) -> None:
        if kind == "s3":
            request.getfixturevalue("s3")
        store = OutputStore(Uri(str(tmp_path) if kind == "local" else f"s3://bucket/{uuid.uuid4().hex}"), concurrency=1)
        # Three files to replace: put, delete, put, delete, delete.
        for ids, failed in (([1, 2, 3], {2}), ([4, 5], {5}), ([6], {6}), ([7], set())):
            store.write_rows(output_table(ids, failed), IDENTITY)
        if changes < 5:
            with pytest.raises(Crash):
                crashing_after(store, changes).strip_failed(free)
        else:
            assert crashing_after(store, changes).strip_failed(free) == 3
        recovery = OutputStore(store.uri).recover(free)
        assert len(recovery.replaced) in (0, 1)
        check_books(store, {1, 3, 4, 7}, {2, 5, 6})
        store.strip_failed(free)
        assert all_ids(store) == [1, 3, 4, 7]

    @settings(max_examples=60, deadline=None)
    @given(files=FILES, crash_at=st.integers(0, 9), crash_again_at=st.integers(0, 4))
    def test_a_crash_anywhere_and_another_while_recovering(
        self, files: list[list[bool]], crash_at: int, crash_again_at: int
    ) -> None:
        store = OutputStore(Uri(f"memory://{uuid.uuid4().hex}"), concurrency=1)
        ids_by_file, failed, next_id = [], set(), 0
        for failures in files:
            ids = list(range(next_id, next_id + len(failures)))
            next_id += len(failures)
            ids_by_file.append(ids)
            failed |= {i for i, is_bad in zip(ids, failures, strict=True) if is_bad}
        for ids in ids_by_file:
            store.write_rows(output_table(ids, failed), IDENTITY)
        annotated = set(range(next_id)) - failed
        for dying in (
            lambda: crashing_after(store, crash_at).strip_failed(free),
            lambda: crashing_after(store, crash_again_at).recover(free),
        ):
            try:
                dying()
            except Crash:
                assert annotated <= set(all_ids(store)), "lost between two steps"
        store.recover(free)
        check_books(store, annotated, failed)
        store.strip_failed(free)
        assert all_ids(store) == sorted(annotated)
        assert store.files().counts.failed == 0
        assert not store.recover(free)

    def test_the_rewritten_rows_are_unchanged(self, local: OutputStore) -> None:
        table = output_table([1, 2, 3, 4], {1}, pa.table({"split": ["a", "b", "c", "d"]}))
        old = local.write_rows(table, dataclasses.replace(IDENTITY, run_id="run-7"))
        assert local.strip_failed(free) == 1
        (new,) = data_names(local)
        assert re.fullmatch(r"part-[0-9a-f]{20}-[0-9a-f]{8}\.parquet", new)
        assert new == data_file_name(table["image_id"].slice(1), new[-16:-8])
        assert new[:25] != old.name[:25]
        assert (
            pq.read_table(f"{local.uri}/data/{new}")
            .replace_schema_metadata(None)
            .equals(made_by(table, "run-7").slice(1))
        )
        identity = local.files().identity()
        assert identity is not None
        assert identity.run_id == "run-7"

    def test_retried_images_come_back(self, local: OutputStore) -> None:
        local.write_rows(output_table([1, 2, 3], {2}), IDENTITY)
        local.strip_failed(free)
        local.write_rows(output_table([2]), IDENTITY)
        assert untouched(local) == 2
        assert all_ids(local) == [1, 2, 3]
        assert local.files().counts.failed == 0

    def test_a_replacement_with_other_rows_deletes_nothing(self, local: OutputStore) -> None:
        old = local.write_rows(output_table([1, 2, 3], {2}), IDENTITY)
        put_file(local, output_table([1]), {old.name: 1})
        with pytest.raises(OutputError, match="holds other rows"):
            local.recover(free)
        assert len(data_names(local)) == 2


def nightly(night: int, ids: Sequence[int], failed: Collection[int] = ()) -> pa.Table:
    """Rows that tell which night they are of."""
    return output_table(ids, failed, pa.table({"night": [night] * len(ids)}))


def nights(store: OutputStore) -> list[tuple[int, int]]:
    """Id and night of every row that counts, sorted."""
    tables = store.iter_ids(store.files().settled, ("image_id", "night"))
    return sorted(pair for t in tables for pair in zip(*(t[name].to_pylist() for name in t.column_names), strict=True))


class TestReplace:
    """Four files, of which three make way for one: newer rows of some images, one image less, and one more."""

    OLD = ([1, 2, 3], [4, 5], [6], [7])
    BEFORE: ClassVar = [(i, 1) for i in range(1, 8)]
    AFTER: ClassVar = [(1, 2), (3, 1), (4, 2), (5, 1), (6, 2), (7, 1), (8, 2)]

    def write(self, store: OutputStore) -> None:
        for ids in self.OLD:
            store.write_rows(nightly(1, ids), IDENTITY)

    def exchange(self, store: OutputStore) -> None:
        entries = {entry.name: entry for entry in store.files().settled}
        old = [entries[data_file_name(pa.chunked_array([ids]))] for ids in self.OLD[:3]]
        rows = pa.concat_tables([nightly(2, [1, 4]), nightly(1, [3, 5]), nightly(2, [8, 6])])
        store.replace(dict(zip(old, (1, 0, 0), strict=True)), rows, IDENTITY, free)

    @pytest.mark.parametrize("kind", ["local", "s3"])
    def test_a_death_at_each_request_in_turn(self, request: pytest.FixtureRequest, tmp_path: Path, kind: str) -> None:
        """And at each one of the recovery after it: the old rows or the new ones, never both, never less."""
        if kind == "s3":
            request.getfixturevalue("s3")
        left, states = 0, set()
        while True:
            place = f"{tmp_path}/{left}" if kind == "local" else f"s3://bucket/{uuid.uuid4().hex}"
            store = OutputStore(Uri(place), concurrency=1)
            self.write(store)
            try:
                self.exchange(crashing_after(store, left, reads_count=True))
            except Crash:
                pass
            else:
                break
            found = nights(store)
            assert found in (self.BEFORE, self.AFTER)
            states.add((found == self.AFTER, len(data_names(store))))
            for left_then in range(20):
                with suppress(Crash):
                    crashing_after(store, left_then, reads_count=True).recover(free)
                assert nights(store) == found
            assert not store.recover(free)
            assert len(data_names(store)) == len(store.files().settled) == (2 if found == self.AFTER else 4)
            left += 1
        assert states == {(False, 4), (True, 5), (True, 4), (True, 3)}, "one of them was not tried"
        assert nights(store) == self.AFTER

    def test_the_new_file_names_the_old_ones_and_what_it_leaves_out(self, local: OutputStore) -> None:
        self.write(local)
        self.exchange(local)
        (replaces,) = [footer.replaces for footer in local.files().footers.values() if footer.replaces]
        names = [data_file_name(pa.chunked_array([ids])) for ids in self.OLD[:3]]
        assert replaces == dict(zip(names, (1, 0, 0), strict=True))

    def test_by_no_rows(self, local: OutputStore) -> None:
        self.write(local)
        (entry,) = [entry for entry, footer in local.files().footers.items() if footer.counts.rows == 3]
        assert local.replace({entry: 3}, nightly(2, [9]).slice(1), IDENTITY, free) is None
        assert nights(local) == self.BEFORE[3:]

    def test_by_the_same_ids(self, local: OutputStore) -> None:
        """The names differ by the token alone, and a latecomer with the old rows has the name of the old file."""
        old = local.write_rows(nightly(1, [1, 2]), IDENTITY)
        content = Path(f"{local.uri}/data/{old.name}").read_bytes()
        for night in (2, 3):
            (entry,) = local.files().settled
            local.replace({entry: 0}, nightly(night, [1, 2], {1}), IDENTITY, free)
            assert nights(local) == [(1, night), (2, night)]
            Path(f"{local.uri}/data/{old.name}").write_bytes(content)
            assert nights(local) == [(1, night), (2, night)]
            assert local.recover(free)
            assert nights(local) == [(1, night), (2, night)]
        assert len(data_names(local)) == 1

    @pytest.mark.parametrize("left", range(3))
    def test_what_replaced_a_file_goes_after_it(self, local: OutputStore, left: int) -> None:
        """A latecomer that was replaced by a file that was replaced: without that one nobody knows it."""
        contents = {}
        local.write_rows(nightly(1, [1, 2]), IDENTITY)
        for night in (2, 3):
            (entry,) = local.files().settled
            contents[entry.name] = Path(f"{local.uri}/data/{entry.name}").read_bytes()
            local.replace({entry: night - 2}, nightly(night, [night * 10, 1, 2]), IDENTITY, free)
        for name, content in contents.items():
            Path(f"{local.uri}/data/{name}").write_bytes(content)
        assert len(data_names(local)) == 3
        with suppress(Crash):
            crashing_after(local, left).recover(free)
        assert nights(local) == [(1, 3), (2, 3), (30, 3)]
        local.recover(free)
        assert nights(local) == [(1, 3), (2, 3), (30, 3)]

    @pytest.mark.parametrize("left_out", [0, 2])
    def test_one_that_holds_not_what_it_says_deletes_nothing(self, local: OutputStore, left_out: int) -> None:
        old = local.write_rows(output_table([1, 2, 3]), IDENTITY)
        put_file(local, output_table([1, 3]), {old.name: left_out})
        with pytest.raises(OutputError, match=f"claims to replace {old.name}.*holds other rows"):
            local.recover(free)
        assert len(data_names(local)) == 2

    def test_of_an_earlier_release(self, local: OutputStore) -> None:
        """There it has a name alone, and leaves out what failed."""
        old = local.write_rows(output_table([1, 2, 3], {2}), IDENTITY)
        name = put_file(local, output_table([1, 3]), {old.name: 0})
        path = f"{local.uri}/data/{name}"
        table = pq.read_table(path)
        metadata = table.schema.metadata | {b"maskfleet.replaces": old.name.encode()}
        del metadata[b"maskfleet.footer_sha256"]
        pq.write_table(table.replace_schema_metadata(metadata), path)
        assert all_ids(local) == [1, 3]
        assert local.recover(free).replaced == (old.name,)
        assert data_names(local) == [name]

    def test_two_that_claim_to_replace_each_other(self, local: OutputStore) -> None:
        one, two = (data_file_name(pa.chunked_array([ids])) for ids in ([1, 2], [2, 1]))
        put_file(local, output_table([1, 2]), {two: 0})
        put_file(local, output_table([2, 1]), {one: 0})
        assert not local.recover(free)
        assert data_names(local) == sorted([one, two])


WRITER = """
import os, signal, sys
sys.path.insert(0, {root!r})
from pipeline.annotations.ledger import OutputStore
from pipeline.storage.uris import Uri
from tests.annotations.output_cases import IDENTITY, output_table
store = OutputStore(Uri(sys.argv[1]))
tables = [output_table(range(first, first + 40)) for first in range(0, 4000, 40)]
print("ready", flush=True)
{die}
for table in tables:
    store.write_rows(table, IDENTITY)
"""
DIE_BEFORE_RENAME = """
names = []
def replace(source, target):
    names.append(target)
    if len(names) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    os.rename(source, target)
os.replace = replace
"""


class TestKilledWriters:
    def test_between_write_and_rename(self, local: OutputStore) -> None:
        code = WRITER.format(root=str(ROOT), die=DIE_BEFORE_RENAME)
        ended = subprocess.run([sys.executable, "-c", code, str(local.uri)], capture_output=True, timeout=60)
        assert ended.returncode == -signal.SIGKILL
        for name in ("run.json", "summary.html"):
            open_objects(local.uri, 1.0).put(f".{name}.{'0' * 32}.tmp", b"{")
        recovery = local.recover(free)
        assert len(recovery.temporary) == 3
        assert recovery.half_written == ()
        assert recovery.num_files == 2
        assert all_ids(local) == list(range(80))
        assert not list(Path(local.uri.path).rglob("*.tmp"))

    def test_anywhere(self, local: OutputStore) -> None:
        code = WRITER.format(root=str(ROOT), die="")
        rng = random.Random(0)
        for _ in range(3):
            process = subprocess.Popen([sys.executable, "-c", code, str(local.uri)], stdout=subprocess.PIPE)
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            time.sleep(rng.uniform(0.0, 0.3))
            process.kill()
            process.communicate()
            recovery = local.recover(free)
            assert recovery.half_written == ()
            ids = all_ids(local)
            assert len(ids) == len(set(ids)) == 40 * recovery.num_files
            assert [name for name in data_names(local) if name.startswith(".")] == []


def test_a_storage_that_gives_too_few_bytes_costs_no_file(local: OutputStore, monkeypatch: pytest.MonkeyPatch) -> None:
    local.write_rows(output_table(range(5)), IDENTITY)
    before = data_names(local)
    opened = LocalObjects.open
    monkeypatch.setattr(
        LocalObjects, "open", lambda self, name, size: pa.BufferReader(opened(self, name, size).read(size - 10))
    )
    with pytest.raises(ReadFailed, match=f"{before[0]} cannot be read: the storage gave"):
        OutputStore(local.uri).recover(free)
    assert data_names(local) == before
