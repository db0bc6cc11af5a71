"""Folders of others stay as they are, scratch included; local, in an object store, and on any fsspec file system."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.annotations.ledger import ANNOTATIONS, OutputStore
from pipeline.annotations.run_json import RunJson, RunState
from pipeline.evaluate.run import _EVALUATION, _remove_old
from pipeline.export.errors import ExportError
from pipeline.export.target import whole_folder
from pipeline.provenance import new_run_id
from pipeline.storage.lock.claim import ForeignFolder, OutputKind, check_own
from pipeline.storage.lock.holder import new_holder
from pipeline.storage.lock.lease import LockLost, OutputLock
from pipeline.storage.lock.scratch import scratch_of
from pipeline.storage.objects.open import open_objects
from pipeline.storage.uris import Uri
from pipeline.train.loop.checkpoint_folder import _STATE
from pipeline.train.run import _TRAINING
from tests.annotations.output_cases import IDENTITY, output_table

LOCK = new_holder("one", 60.0).encode()
METRICS = json.dumps({"title": "Evaluation", "sources": {}, "decisions": [], "run": {"run_id": "r"}}).encode()
REPORT = json.dumps({"run_id": "r", "state": "finished", "identity": {"weights_sha256": "a"}}).encode()
HEADER = json.dumps({"__metadata__": {"source": json.dumps({"training": {}})}}).encode()
LAST = len(HEADER).to_bytes(8, "little") + HEADER


def put(uri: Uri, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        open_objects(uri).put(name, content)


def content(uri: Uri, folder: str = "") -> dict[str, bytes]:
    objects = open_objects(uri)
    files, folders = objects.list(folder)
    prefix = f"{folder}/" if folder else ""
    found = {f"{prefix}{entry.name}": objects.read(f"{prefix}{entry.name}")[0] for entry in files}
    return found | {k: v for name in folders for k, v in content(uri, f"{prefix}{name}").items()}


FOREIGN: dict[str, tuple[OutputKind, dict[str, bytes]]] = {
    "photos": (ANNOTATIONS, {"holiday/1.jpg": b"x"}),
    "scratch of the user's": (ANNOTATIONS, {"_scratch/thesis.tex": b"x"}),
    "data of another program": (ANNOTATIONS, {"data/part-00000.parquet": b"x", "data/notes.txt": b"x"}),
    "a report of another program": (ANNOTATIONS, {"run.json": b'{"state": "finished", "run_id": "r"}'}),
    "a page of the user's": (ANNOTATIONS, {"summary.html": b"<html>"}),
    "an evaluation for annotations": (ANNOTATIONS, {"_lock.json": LOCK, "metrics.json": METRICS}),
    "another program's lock": (ANNOTATIONS, {"_lock.json": b'{"name": "npm"}'}),
    "metrics of another program": (_EVALUATION, {"metrics.json": b'{"accuracy": 0.9}', "_lock.json": LOCK}),
    "metrics that are no JSON": (_EVALUATION, {"metrics.json": b"[" * 100_000}),
    "matches of a tournament": (_EVALUATION, {"matches/final.csv": b"x"}),
    "annotations for an evaluation": (_EVALUATION, {"_lock.json": LOCK, "run.json": REPORT, "data/x": b""}),
    "a model": (_TRAINING, {"best.safetensors": b"x", "last.safetensors": b"\xff" * 20, "_lock.json": LOCK}),
    "a model of ours": (_TRAINING, {"last.safetensors": (2).to_bytes(8, "little") + b"{}"}),
}
OWN: dict[str, tuple[OutputKind, dict[str, bytes]]] = {
    "nothing": (ANNOTATIONS, {}),
    "nothing visible": (_EVALUATION, {".DS_Store": b"x"}),
    "killed before a file was there": (ANNOTATIONS, {"_lock.json": LOCK, "_scratch/units-0.parquet": b"x"}),
    "killed, with a report that is cut off": (ANNOTATIONS, {"_lock.json": LOCK, "run.json": b'{"state'}),
    "a page, and a report that is cut off": (ANNOTATIONS, {"_lock.json": LOCK, "run.json": b"{", "summary.html": b""}),
    "a report, and notes of the user's": (ANNOTATIONS, {"run.json": REPORT, "notes.txt": b"x"}),
    "data alone": (ANNOTATIONS, {"data/part-00000000000000000000.parquet": b"x"}),
    "rewritten data": (ANNOTATIONS, {"data/part-00000000000000000000-00000000.parquet": b"x", "run.json": b"["}),
    "an evaluation": (_EVALUATION, {"metrics.json": METRICS, "_lock.json": LOCK, "notes.txt": b"x"}),
    "an evaluation that was killed": (_EVALUATION, {"_lock.json": LOCK, "matches/part-00000.parquet": b""}),
    "a training": (_TRAINING, {"last.safetensors": LAST, "state-00000001.safetensors": b"", "x/y": b""}),
    "a training that was killed": (_TRAINING, {"_lock.json": LOCK, "tensorboard/x": b"", "best.safetensors": b""}),
}


@pytest.mark.parametrize(("kind", "files"), FOREIGN.values(), ids=FOREIGN)
def test_of_others(uri: Uri, kind: OutputKind, files: dict[str, bytes]) -> None:
    put(uri, files)
    with pytest.raises(ForeignFolder, match=rf"not what {kind.job} writes: it holds .*{next(iter(files))[:4]}"):
        check_own(uri, kind)
    assert content(uri) == files


@pytest.mark.parametrize(("kind", "files"), OWN.values(), ids=OWN)
def test_of_our_own(uri: Uri, kind: OutputKind, files: dict[str, bytes]) -> None:
    put(uri, files)
    check_own(uri, kind)
    assert content(uri) == files


def test_what_our_code_writes_is_our_own(uri: Uri) -> None:
    with OutputLock(uri, "one"):
        check_own(uri, ANNOTATIONS)
        check_own(uri, _TRAINING)
        OutputStore(uri).write_rows(output_table([1]), IDENTITY)
    RunJson(run_id="one", state=RunState.RUNNING, identity={"weights_sha256": "a"}).write(uri)
    open_objects(uri).delete("_lock.json")
    put(uri, {"mine.txt": b"x"})
    check_own(uri, ANNOTATIONS)


def test_an_evaluation_removes_what_one_writes(uri: Uri) -> None:
    mine = {"matches/final.csv": b"x", "matches/deep/part-00000.parquet": b"x", "_scratch/a": b"x", "notes.txt": b"x"}
    ours = dict.fromkeys(("metrics.json", "report.html", "thresholds.yaml", "matches/part-00012.parquet"), b"x")
    put(uri, mine | ours)
    with OutputLock(uri, "one") as lock:
        _remove_old(uri, lock.fence())
        left = content(uri)
    assert {name: text for name, text in left.items() if "_lock.json" not in name} == mine


class TestScratch:
    def test_each_run_removes_its_own(self, uri: Uri) -> None:
        mine = {"_scratch/thesis.tex": b"x", f"_scratch/{new_run_id()}/thesis.tex": b"x", "_scratch/a/_run": b"x"}
        put(uri, mine)
        one, two = new_run_id(), new_run_id()
        with scratch_of(uri, one, free) as first:
            put(first, {"deep/er/copy": b"x", "copy": b"x"})
            # The one that lost its lock wakes up, and ends, while the next is at work.
            with scratch_of(uri, two, free) as second:
                assert not {name for name in content(uri) if one in name}
                put(second, {"copy": b"x"})
                put(first, {"late": b"x"})
        assert content(uri) == mine

    def test_nothing_is_left(self, uri: Uri) -> None:
        with scratch_of(uri, new_run_id(), free) as folder:
            put(folder, {"deep/er/copy": b"x"})
        assert open_objects(uri).list("") == ([], [])

    def test_a_late_sweep_is_fenced(self, uri: Uri) -> None:
        def lost() -> None:
            raise LockLost("taken")

        with scratch_of(uri, new_run_id(), free) as folder:
            put(folder, {"copy": b"x"})
            before = content(uri)
            with pytest.raises(LockLost), scratch_of(uri, new_run_id(), lost):
                pytest.fail("entered")
            assert content(uri) == before

    def test_it_goes_when_the_run_fails(self, uri: Uri) -> None:
        with pytest.raises(KeyError), scratch_of(uri, new_run_id(), free):
            raise KeyError
        assert content(uri) == {}


def free() -> None:
    """A fence that nobody closes."""


def test_a_state_of_the_users_stays() -> None:
    assert _STATE.fullmatch("state-00000012.safetensors")
    assert not _STATE.fullmatch("state-of-the-art.safetensors")


def test_a_marker_of_another_program(tmp_path: Path) -> None:
    texts: list[Any] = [b"[" * 100_000, b'{"state": "exported"}', b"[]", b"\xff"]
    for text in texts:
        (tmp_path / "export.json").write_bytes(text)
        (tmp_path / "thesis.tex").write_bytes(b"years of work")
        with (
            pytest.raises(ExportError, match="no earlier export"),
            whole_folder(Uri(str(tmp_path)), overwrite=True),
        ):
            pytest.fail("opened")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["export.json", "thesis.tex"]
