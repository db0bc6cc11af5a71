from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from pipeline.annotations import data_folder
from pipeline.annotations.data_file import OutputError, data_file_name, encode_data_file
from pipeline.annotations.data_folder import DataFolder
from pipeline.annotations.ledger import OutputStore
from pipeline.annotations.overview import Standing, failed_rows, look_over
from pipeline.annotations.overview_text import overview_text
from pipeline.annotations.run_json import ImageCounts, RunJson, RunState, ThisRun
from pipeline.model.categories import Category
from pipeline.storage.lock.holder import Holder, new_holder
from pipeline.storage.lock.lease import OutputLock
from pipeline.storage.objects.open import open_objects
from pipeline.storage.uris import Uri
from tests.annotations.output_cases import CATEGORY_NAMES, IDENTITY, output_table

ROOT = Path(__file__).parents[2]
RUN, EARLIER = "20260102T000000-00000002", "20260101T000000-00000001"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An output of two files, one row of four failed."""
    store = OutputStore(Uri(str(tmp_path / "out")))
    for first in (0, 20):
        store.write_rows(with_codes(output_table(range(first, first + 20), set(range(0, 40, 4)))), IDENTITY)
    return tmp_path / "out"


def with_codes(table: pa.Table) -> pa.Table:
    """The failed rows get one of two codes, and messages of their own."""
    ids = table["image_id"]
    failed = pc.equal(table["status"], "failed")
    codes = pc.if_else(failed, pc.if_else(pc.less(ids, 4), "rare", "not_found"), None)
    messages = pc.if_else(failed, pc.binary_join_element_wise("why", pc.cast(ids, pa.string()), " "), None)
    at = table.schema.names.index("error_code")
    return table.set_column(at, "error_code", codes).set_column(at + 1, "error_message", messages)


def put_lock(uri: Uri, holder: Holder) -> None:
    open_objects(uri).put("_lock.json", holder.encode())


def elsewhere(lease_s: float, run_id: str = RUN) -> Holder:
    """A process of another machine."""
    return replace(new_holder(run_id, lease_s), namespace="another", host="far")


def state_of(uri: Uri) -> dict[str, tuple[bytes, str]]:
    """Everything in an output, with its versions."""
    objects = open_objects(uri)
    names = [entry.name for entry in objects.list("").files]
    names += [f"data/{entry.name}" for entry in objects.list("data").files]
    return {name: objects.read(name) for name in names}


def test_the_books_are_those_of_the_files(uri: Uri) -> None:
    store = OutputStore(uri)
    tables = [with_codes(output_table(range(n, n + 10), {1, 5, 12, 13, 14, 15})) for n in (0, 10, 20)]
    for number, table in enumerate(tables):
        store.write_rows(table, replace(IDENTITY, run_id=EARLIER if number == 0 else RUN))
    categories = tuple(Category(i, name) for i, name in zip((1, 2, 90), CATEGORY_NAMES, strict=True))
    RunJson(run_id=RUN, state=RunState.RUNNING, categories=categories, this_run=ThisRun(images=50)).write(uri)
    put_lock(uri, elsewhere(3600.0))
    before = state_of(uri)
    overview = look_over(uri)
    rows = pa.concat_tables(tables)
    names = Counter(each["category_name"] for found in rows["detections"].to_pylist() for each in found or [])
    assert (overview.counts.annotated, overview.counts.failed) == (24, 6)
    assert (overview.standing, overview.written, overview.pending, overview.manifest) == (Standing.RUNNING, 20, 30, 60)
    assert {(kind.code, kind.count) for kind in overview.failures} == {("not_found", 5), ("rare", 1)}
    assert overview.classes == dict(names)
    assert list(overview.classes.values()) == sorted(names.values(), reverse=True)
    sizes = [entry.size_bytes for entry in open_objects(uri).list("data").files]
    assert (overview.num_files, overview.num_bytes, overview.problems) == (3, sum(sizes), ())
    assert {identity.run_id for identity in overview.identities} == {EARLIER, RUN}
    assert state_of(uri) == before, "it only looks"


def test_first_failures_and_all_of_them(out: Path) -> None:
    overview = look_over(Uri(str(out)), num_examples=2)
    table = ds.dataset(out / "data").to_table().to_pydict()
    failed = [n for n, status in enumerate(table["status"]) if status == "failed"]
    wanted = [
        tuple(table[name][n] for name in ("image_id", "image_uri", "stage", "error_code", "error_message"))
        for n in failed
    ]
    problems: list[str] = []
    assert [tuple(vars(row).values()) for row in failed_rows(look_over(Uri(str(out))), problems)] == wanted
    assert problems == []
    examples = {kind.code: kind.examples for kind in overview.failures}
    assert examples["rare"] == ((0, "why 0"),)
    assert examples["not_found"] == tuple((row[0], row[4]) for row in wanted if row[3] == "not_found")[:2]


def test_examples_need_few_files(uri: Uri, monkeypatch: pytest.MonkeyPatch) -> None:
    store = OutputStore(uri)
    for n in range(0, 80, 10):
        store.write_rows(with_codes(output_table(range(n, n + 10), {4, *range(10, 80)})), IDENTITY)
    read: list[str] = []
    whole = DataFolder.read
    monkeypatch.setattr(DataFolder, "read", lambda *args: read.append(args[2].name) or whole(*args))
    assert [len(kind.examples) for kind in look_over(uri).failures] == [3]
    assert 1 <= len(read) <= 2


class TestStanding:
    def test_a_run_at_work(self, uri: Uri) -> None:
        with OutputLock(uri, RUN) as lock:
            lock.check()
            overview = look_over(uri)
            assert (overview.standing, overview.run_id, overview.pending) == (Standing.RUNNING, RUN, None)
            assert overview.lock is not None
            assert overview.lock.silent_s is not None
            assert overview.lock.silent_s < 30
            RunJson(run_id=RUN, state=RunState.RUNNING).write(uri)
            assert look_over(uri).standing is Standing.RUNNING
            RunJson(run_id=RUN, state=RunState.FINISHED).write(uri)
            assert look_over(uri).standing is Standing.ENDED, "before the lock is released"
        assert look_over(uri).standing is Standing.ENDED

    def test_silence_longer_than_the_lease(self, uri: Uri) -> None:
        put_lock(uri, elsewhere(0.001))
        RunJson(run_id=RUN, state=RunState.RUNNING).write(uri)
        time.sleep(0.01)
        overview = look_over(uri)
        assert overview.standing is Standing.DIED
        assert overview.lock is not None
        assert not overview.lock.dead

    def test_a_later_run_that_has_said_nothing_yet(self, uri: Uri) -> None:
        RunJson(run_id=EARLIER, state=RunState.FINISHED, images=ImageCounts(5, 5, 0)).write(uri)
        put_lock(uri, elsewhere(3600.0))
        overview = look_over(uri)
        assert (overview.standing, overview.run_id) == (Standing.RUNNING, RUN)
        assert (overview.pending, overview.manifest) == (None, None), "the manifest may have grown"

    def test_a_process_that_was_killed(self, tmp_path: Path) -> None:
        out = tmp_path / "out"
        code = (
            "import os, signal\nfrom pipeline.storage.lock.lease import OutputLock\n"
            "from pipeline.storage.uris import Uri\n"
            f"OutputLock(Uri({str(out)!r}), {RUN!r}).acquire(); os.kill(os.getpid(), signal.SIGKILL)"
        )
        assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == -9
        overview = look_over(Uri(str(out)))
        assert overview.standing is Standing.DIED
        assert overview.lock is not None
        assert overview.lock.dead

    @pytest.mark.parametrize("state", RunState)
    def test_a_released_lock_leaves_the_word_to_the_report(self, tmp_path: Path, state: RunState) -> None:
        uri = Uri(str(tmp_path / "out"))
        put_lock(uri, replace(elsewhere(60.0), released=True))
        assert look_over(uri).standing is Standing.UNREPORTED
        RunJson(run_id=RUN, state=state).write(uri)
        assert look_over(uri).standing is (Standing.DIED if state is RunState.RUNNING else Standing.ENDED)

    def test_rows_without_a_report(self, out: Path) -> None:
        overview = look_over(Uri(str(out)))
        assert (overview.standing, overview.pending, overview.manifest) == (Standing.UNREPORTED, None, None)
        assert set(overview.classes) <= set(CATEGORY_NAMES), "named as in the rows"

    @pytest.mark.parametrize("keeps", [True, False])
    def test_replaced_files_are_a_problem_where_nobody_keeps_them(self, out: Path, keeps: bool) -> None:
        uri = Uri(str(out))
        store = OutputStore(uri, keep_replaced=True)
        store.strip_failed(lambda: None)
        config = {"output": {"table": {"kind": "delta", "keep_replaced": keeps}}}
        RunJson(run_id=RUN, state=RunState.FINISHED, config=config).write(uri)
        overview = look_over(uri)
        assert (overview.num_files, overview.num_kept) == (2, 2 if keeps else 0)
        assert ("2 more for the table's earlier versions" in overview_text(overview)) == keeps
        assert ["other files as well" in problem for problem in overview.problems] == ([] if keeps else [True])

    def test_a_finished_output_that_has_lost_a_file(self, out: Path) -> None:
        RunJson(run_id=RUN, state=RunState.FINISHED, images=ImageCounts(40, 30, 10)).write(Uri(str(out)))
        assert look_over(Uri(str(out))).pending == 0
        next((out / "data").iterdir()).unlink()
        assert (look_over(Uri(str(out))).pending, look_over(Uri(str(out))).manifest) == (20, 40)


class TestDamage:
    def test_files_are_named_and_passed_over(self, out: Path) -> None:
        cut_off, whole = sorted((out / "data").iterdir())
        cut_off.write_bytes(cut_off.read_bytes()[:-5])
        counts = pq.read_table(whole)["status"].value_counts().to_pylist()
        overview = look_over(Uri(str(out)))
        assert overview.counts.rows == sum(each["counts"] for each in counts) == 20
        [problem] = overview.problems
        assert cut_off.name in problem
        problems: list[str] = []
        assert len(list(failed_rows(look_over(Uri(str(out))), problems))) == 5
        assert problems == [problem]

    def test_rows_that_are_damaged(self, out: Path) -> None:
        """The footer counts them all the same."""
        file = min((out / "data").iterdir())
        content = bytearray(file.read_bytes())
        stop = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
        content[4:stop] = bytes(stop - 4)
        file.write_bytes(content)
        overview = look_over(Uri(str(out)))
        assert (overview.counts.rows, overview.counts.failed) == (40, 10)
        problems: list[str] = []
        assert len(list(failed_rows(overview, problems))) == 5
        for [problem] in (overview.problems, problems):
            assert f"{file.name} is damaged" in problem

    def test_all_files_are_damaged(self, out: Path) -> None:
        for file in (out / "data").iterdir():
            file.write_bytes(b"PAR1")
        overview = look_over(Uri(str(out)))
        assert (overview.num_files, overview.counts.rows, len(overview.problems)) == (0, 0, 2)

    def test_a_file_that_may_not_be_read(self, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        refused = max((out / "data").iterdir())
        opened = data_folder.read_footer

        def read_footer(objects: Any, name: str, entry: Any) -> Any:
            if entry.name == refused.name:
                raise PermissionError(13, "Permission denied")
            return opened(objects, name, entry)

        monkeypatch.setattr(data_folder, "read_footer", read_footer)
        overview = look_over(Uri(str(out)))
        assert (overview.counts.rows, len(overview.problems)) == (20, 1)
        assert refused.name in overview.problems[0]

    def test_what_does_not_belong_there(self, out: Path) -> None:
        uri = Uri(str(out))
        (out / "data" / "notes.txt").write_text("mine")
        table = output_table(range(100, 104))
        OutputStore(uri).write_rows(table, replace(IDENTITY, weights_sha256="b" * 64))
        name = data_file_name(table["image_id"], "00000000")
        (out / "data" / name).write_bytes(encode_data_file(table, IDENTITY, 1, {"part-" + "0" * 20 + ".parquet": 0}))
        (out / "run.json").write_text("{")
        overview = look_over(uri)
        assert overview.counts.rows == 44, "rows that are there twice count once"
        told = "\n".join(overview.problems)
        for words in ("run.json is damaged", "notes.txt", "do not belong together", name[:25], "other files as well"):
            assert words in told

    def test_a_file_of_another_schema(self, out: Path) -> None:
        """An output of a release that knew other columns."""
        for file in (out / "data").iterdir():
            table = pq.read_table(file)
            metadata = {**table.schema.metadata, b"maskfleet.schema_version": b"0"}
            metadata.pop(b"maskfleet.footer_sha256")
            older = table.drop_columns(["stage", "exif_orientation"]).replace_schema_metadata(metadata)
            pq.write_table(older, file)
        overview = look_over(Uri(str(out)))
        assert (overview.counts.rows, overview.problems) == (40, ())
        problems: list[str] = []
        rows = list(failed_rows(look_over(Uri(str(out))), problems))
        assert ({row.stage for row in rows}, len(rows), problems) == ({""}, 10, [])

    def test_a_lock_that_makes_no_sense(self, out: Path) -> None:
        (out / "_lock.json").write_text("[1, 2")
        assert look_over(Uri(str(out))).lock is None


def test_files_are_replaced_meanwhile(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``--retry-failed`` replaces files between the listing and the reading: each row counts once."""
    store = OutputStore(Uri(str(out)))
    opened, stripped = data_folder.read_footer, []

    def read_footer(*args: Any) -> Any:
        if not stripped:
            stripped.append(True)
            assert store.strip_failed(lambda: None) == 10
        return opened(*args)

    monkeypatch.setattr(data_folder, "read_footer", read_footer)
    monkeypatch.setattr("pipeline.annotations.overview._CONCURRENCY", 1)
    overview = look_over(Uri(str(out)))
    assert (overview.counts.annotated, overview.counts.failed, overview.problems) == (30, 0, ())


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("nothing", "does not exist, or is empty"),
        ("empty", "does not exist, or is empty"),
        ("photos", "and holds a.jpg"),
        ("out/data", "give the folder that it is in"),
        ("photos/a.jpg", "is a file"),
        ("evaluation", "and holds metrics.json"),
        ("other", "run.json is damaged, or not an annotate job's"),
    ],
)
def test_no_output(tmp_path: Path, out: Path, place: str, words: str) -> None:
    (tmp_path / "empty").mkdir()
    files = {"photos/a.jpg": "", "evaluation/metrics.json": "{}", "other/run.json": json.dumps({"kind": "of theirs"})}
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    with pytest.raises(OutputError, match=words) as raised:
        look_over(Uri(str(tmp_path / place)))
    assert str(tmp_path / place) in str(raised.value)


def test_no_output_in_stores(uri: Uri) -> None:
    with pytest.raises(OutputError, match="does not exist, or is empty"):
        look_over(uri)


def test_nobody_may_write_there(out: Path) -> None:
    """Reading needs no permission to write."""
    put_lock(Uri(str(out)), elsewhere(60.0))
    folders = [out, out / "data"]
    for folder in folders:
        os.chmod(folder, 0o555)
    try:
        assert look_over(Uri(str(out))).counts.rows == 40
    finally:
        for folder in folders:
            os.chmod(folder, 0o755)
