"""Small files of an output are joined: its rows stay what they are, whatever happens meanwhile."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
import time
import uuid
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs import compact as job
from pipeline.annotations.compact import compact, look, plan
from pipeline.annotations.data_file import Counts, Footer, OutputError
from pipeline.annotations.data_folder import DataFolder
from pipeline.annotations.ledger import OutputStore
from pipeline.annotations.overview import look_over
from pipeline.annotations.reader import open_source
from pipeline.annotations.schema import SCHEMA_VERSION, output_schema
from pipeline.storage.lock.holder import LOCK_NAME
from pipeline.storage.lock.lease import LockLost, OutputLock
from pipeline.storage.lock.watch import LockHeld
from pipeline.storage.objects.base import Entry
from pipeline.storage.objects.open import open_objects
from pipeline.storage.uris import Uri
from testing.output_rows import as_schema_1
from tests.annotations.output_cases import IDENTITY, output_table

ROOT = Path(__file__).parents[2]
SCHEMA = output_schema(pa.int64())


def write_nights(uri: Uri, sizes: list[int]) -> OutputStore:
    """Files of so many images, of several runs; every tenth image failed."""
    store, start = OutputStore(uri, concurrency=4), 0
    for night, num_images in enumerate(sizes):
        ids = range(start, start + num_images)
        carried = pa.table({"camera": [f"camera {i % 3}" for i in ids]})
        table = output_table(ids, {i for i in ids if i % 10 == 3}, carried)
        store.write_rows(table, replace(IDENTITY, run_id=f"run-{night}"))
        start += num_images
    return store


def rows_of(uri: Uri) -> pa.Table:
    """All rows that count, by id."""
    store = OutputStore(uri)
    return pa.concat_tables(store.iter_ids(store.files().settled, columns=None)).sort_by("image_id").combine_chunks()


def names_of(uri: Uri) -> list[str]:
    return [entry.name for entry in open_objects(uri).list("data").files]


def footers_of(sizes: list[int]) -> dict[Entry, Footer]:
    return {
        Entry(f"part-{n:020x}.parquet", 1, "1"): Footer(SCHEMA, SCHEMA_VERSION, IDENTITY, Counts(rows), {}, {})
        for n, rows in enumerate(sizes)
    }


class TestPlan:
    @pytest.mark.parametrize(
        ("sizes", "joined"),
        [
            ([], []),
            ([3], []),
            ([10, 10, 5], []),
            ([3, 10, 3], [[3, 3]]),
            ([4, 4, 4, 4], [[4, 4], [4, 4]]),
            ([4, 4, 4], [[4, 4]]),
            ([1] * 23, [[1] * 10, [1] * 10, [1] * 3]),
            ([4, 5, 4, 11, 2], [[4, 4, 2]]),
        ],
        ids=["none", "one", "whole ones", "around a whole one", "pairs", "one is left", "tiny", "half is not small"],
    )
    def test_cases(self, sizes: list[int], joined: list[list[int]]) -> None:
        files = footers_of(sizes)
        groups = plan(files, 10).groups
        assert [[files[entry].counts.rows for entry in group] for group in groups] == joined

    @given(sizes=st.lists(st.integers(1, 30), max_size=60), images_per_file=st.integers(1, 40))
    def test_what_is_joined_is_not_joined_again(self, sizes: list[int], images_per_file: int) -> None:
        files = footers_of(sizes)
        groups = plan(files, images_per_file).groups
        in_order = [entry for group in groups for entry in group]
        assert in_order == sorted(set(in_order))
        made = [sum(files[entry].counts.rows for entry in group) for group in groups]
        assert all(rows <= images_per_file for rows in made)
        assert all(2 * rows >= images_per_file for rows in made[:-1])
        left = [footer.counts.rows for entry, footer in files.items() if entry not in in_order]
        assert sum(2 * rows < images_per_file for rows in [*left, *made]) <= 1 + (len(made) > 0)


@pytest.mark.parametrize("kind", ["local", "s3"])
def test_rows_stay_the_same(request: pytest.FixtureRequest, tmp_path: Path, kind: str) -> None:
    if kind == "s3":
        request.getfixturevalue("s3")
    uri = Uri(str(tmp_path / "out") if kind == "local" else f"s3://bucket/{uuid.uuid4().hex}")
    store = write_nights(uri, [3, 20, 4, 2, 1, 12, 5, 2])
    before, counts = rows_of(uri), store.files().counts
    small = [entry for entry, footer in store.files().settled.items() if footer.counts.rows < 10]
    in_order = pa.concat_tables(store.iter_ids(small, columns=None))
    assert str(look(uri, 20)).startswith("8 data files -> 3: 6 small ones (17 images, ")
    done = compact(uri, 20)
    assert str(done) == str(done)
    assert rows_of(uri).equals(before)
    files = OutputStore(uri).files()
    assert (len(files.footers), files.counts) == (3, counts)
    (new,) = (entry for entry, footer in files.footers.items() if footer.replaces)
    assert next(store.iter_ids([new], columns=None)).equals(in_order)
    assert files.footers[new].replaces == {entry.name: 0 for entry in small}
    assert str(compact(uri, 20)) == "3 data files: no small ones to join"
    assert not OutputStore(uri).recover(lambda: None)


def test_files_of_two_releases_become_one_of_this(tmp_path: Path) -> None:
    """Who made a row is told by the footer there, and by the row here."""
    uri = Uri(str(tmp_path))
    store = write_nights(uri, [3, 4, 5])
    for entry, footer in store.files().footers.items():
        if footer.identity.run_id != "run-1":
            as_schema_1(tmp_path / "data" / entry.name)
    before, runs = rows_of(uri), open_source(uri).provenance["run_ids"]
    compact(uri)
    assert rows_of(uri).equals(before)
    assert open_source(uri).provenance["run_ids"] == runs == ["run-0", "run-1", "run-2"]
    assert before["run_id"].to_pylist() == ["run-0"] * 3 + ["run-1"] * 4 + ["run-2"] * 5
    (footer,) = OutputStore(uri).files().footers.values()
    assert (footer.schema_version, footer.runs) == (SCHEMA_VERSION, {"run-0": 3, "run-1": 4, "run-2": 5})


def test_a_dry_run_leaves_all_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_nights(Uri(str(tmp_path)), [3, 2])
    before = sorted(tmp_path.rglob("*"))
    assert job.main([str(tmp_path), "--dry-run"]) == 0
    assert "2 data files -> 1: 2 small ones (5 images, " in capsys.readouterr().out
    assert sorted(tmp_path.rglob("*")) == before
    assert job.main([str(tmp_path), "--images-per-file", "4"]) == 0
    assert "2 data files: no small ones to join" in capsys.readouterr().out
    assert job.main([str(tmp_path)]) == 0
    assert len(names_of(Uri(str(tmp_path)))) == 1


@pytest.mark.parametrize("place", ["nothing", "photos", "photos/data.txt"])
def test_no_output(tmp_path: Path, place: str) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/data.txt").touch()
    for act in (look, compact):
        with pytest.raises(OutputError, match="annotate job"):
            act(Uri(str(tmp_path / place)))
    assert [path.name for path in tmp_path.rglob("*")] == ["photos", "data.txt"]


def test_files_that_do_not_belong_together_stay(tmp_path: Path) -> None:
    uri = Uri(str(tmp_path))
    write_nights(uri, [3, 2])
    OutputStore(uri).write_rows(output_table([77]), replace(IDENTITY, weights_sha256="b" * 64))
    for act in (look, compact):
        with pytest.raises(OutputError, match="do not belong together"):
            act(uri)
    assert len(names_of(uri)) == 3


def test_an_image_that_is_there_twice_stays_so(tmp_path: Path) -> None:
    uri = Uri(str(tmp_path))
    write_nights(uri, [3, 2])
    rows = rows_of(uri)
    OutputStore(uri).write_rows(rows.slice(1, 3), IDENTITY)
    with pytest.raises(OutputError, match="more than once; annotate names them"):
        compact(uri)
    assert len(names_of(uri)) == 3


def test_another_run_is_at_work(tmp_path: Path) -> None:
    uri = Uri(str(tmp_path))
    write_nights(uri, [3, 2])
    with OutputLock(uri, "20260101T000000-00000000", lease_s=1.0), pytest.raises(LockHeld):
        compact(uri)
    assert len(names_of(uri)) == 2


def test_a_lost_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another run takes it between two new files: what was joined is, and the rest stays."""
    uri = Uri(str(tmp_path))
    write_nights(uri, [4] * 6)
    before, replaced, taken = rows_of(uri), OutputStore.replace, []

    def replace_and_lose(*args: object) -> object:
        if taken:
            (tmp_path / LOCK_NAME).write_text("{}")
        taken.append(args)
        return replaced(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(OutputStore, "replace", replace_and_lose)
    with pytest.raises(LockLost):
        compact(uri, 9)
    assert (len(names_of(uri)), len(taken)) == (5, 2)
    assert rows_of(uri).equals(before)


def test_readers_meanwhile(tmp_path: Path) -> None:
    """Whoever looks sees each row once, whichever files there are at that moment."""
    uri = Uri(str(tmp_path))
    write_nights(uri, [2] * 150)
    counts, looks = look_over(uri).counts, 0
    thread = threading.Thread(target=compact, args=(uri, 10))
    thread.start()
    while thread.is_alive():
        overview = look_over(uri)
        footers = DataFolder(uri, 4).current(open_objects(uri))
        assert (overview.counts, overview.problems) == (counts, ())
        assert sum(footer.counts.rows for footer in footers.values()) == 300
        looks += 1
    thread.join()
    assert looks > 1
    assert len(names_of(uri)) == 30


def test_no_more_in_memory_than_a_new_file(tmp_path: Path) -> None:
    uri = Uri(str(tmp_path))
    store = OutputStore(uri)
    text = random.Random(0).randbytes(50_000).hex()
    for n in range(60):
        store.write_rows(output_table([2 * n, 2 * n + 1], (), pa.table({"note": [text + str(n)] * 2})), IDENTITY)
    pool = pa.system_memory_pool()
    former = pa.default_memory_pool()
    pa.set_memory_pool(pool)
    try:
        compact(uri, 12)
    finally:
        pa.set_memory_pool(former)
    assert len(names_of(uri)) == 10
    assert pool.max_memory() < 60 * 2 * 100_000 / 2


KILLED = """
import sys
from pipeline.annotations.compact import compact
from pipeline.storage.uris import Uri
compact(Uri(sys.argv[1]), 10)
"""


def test_killed_again_and_again(tmp_path: Path) -> None:
    uri = Uri(str(tmp_path))
    write_nights(uri, [2] * 120)
    before, rng, seen = rows_of(uri), random.Random(0), [120]
    for _ in range(20):
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(uri)], cwd=ROOT)
        few_enough = seen[-1] - rng.randrange(20, 40)
        while process.poll() is None and len(names_of(uri)) > few_enough:
            time.sleep(0.0005)
        process.kill()
        process.communicate()
        assert rows_of(uri).equals(before), "a row lost, doubled, or changed"
        if process.returncode != -signal.SIGKILL:
            break
        seen.append(len(names_of(uri)))
    assert process.returncode == 0
    assert len(set(seen)) > 2, "it was not killed half-way"
    assert str(compact(uri, 10)) == "24 data files: no small ones to join"
    assert not [name for name in names_of(uri) if name.startswith(".")]
