from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import pyarrow.dataset as ds
import pytest

from jobs.show import COLUMNS, main
from pipeline.annotations.ledger import OutputStore
from pipeline.annotations.run_json import AcceleratorUse, ImageCounts, RunJson, RunState, Seconds, ThisRun
from pipeline.model.categories import Category
from pipeline.storage.lock.holder import new_holder
from pipeline.storage.lock.lease import OutputLock
from pipeline.storage.uris import Uri
from testing.s3_server import S3Server
from tests.annotations.output_cases import CATEGORY_NAMES, IDENTITY, output_table

ROOT = Path(__file__).parents[2]
RUN = "20260102T030405-00000002"
CONTENT = {"model": {"precision": "fp32", "settings": {"score_threshold": 0.3}, "class_thresholds": {"person": 0.5}}}
REPORT = RunJson(
    run_id=RUN,
    state=RunState.FINISHED,
    config={"manifest": {"uri": "/data/list.csv", "format": "auto"}, "model": {"checkpoint": "swin_t_coco"}},
    identity={"source": {"file": "a.pth", "layout": "mmdet", "sha256": "d" * 64}},
    code={"version": "0.1+abc"},
    categories=tuple(Category(i, name) for i, name in zip((1, 2, 90), CATEGORY_NAMES, strict=True)),
    images=ImageCounts(20, 15, 5),
    this_run=ThisRun(
        *(20, 20, 1, 10.0, 2.0, 0.75, 0.9, {"fetch": 1.0, "segment": 3.0}),
        gpu_seconds=Seconds(7200.0, 3600.0, 3540.0, 60.0),
        by_accelerator={"NVIDIA H100": AcceleratorUse(20, 7200.0, 7200.0, 10.0)},
        cost=5.0,
    ),
)


def write_output(uri: Uri, report: RunJson = REPORT) -> None:
    store = OutputStore(uri)
    identity = replace(IDENTITY, content_config=json.dumps(CONTENT), run_id=RUN, code_version="0.1+abc")
    store.write_rows(output_table(range(20), range(0, 20, 4)), identity)
    report.write(uri)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    write_output(Uri(str(tmp_path / "out")))
    return tmp_path / "out"


def shown(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(argv) == 0
    return re.sub(r"\s+", " ", capsys.readouterr().out)


def test_the_whole(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if not line.startswith(" ")] == [
        *("output", "state", "images", "failures", "classes", "speed", "files", "model", "settings", "code")
    ]
    assert max(map(len, lines[1:])) <= 80
    text = re.sub(r"\s+", " ", " ".join(lines))
    for words in (
        "state finished",
        f"run {RUN}, begun 2026-01-02 03:04:05 UTC",
        "images 20 in the manifest 15 annotated 5 failed (25.00%) 0 pending",
        "failures 5 not_found 0: ? 4: ? 8: ? and 2 more",
        "classes 30 detections, 3 of 3 classes",
        "this run: 20 images in 10.0 s with start-up, 2.00 img/s",
        "GPU time: 2 h 00 min held: 1 h 00 min busy, "
        "59 min 00 s idle, 1 min 00 s lost to deaths images a GPU-hour: 10 on NVIDIA H100 cost: 5.00",
        "work: fetch 25%, segment 75%; replicas busy 75%",
        "files 1 file, 20 rows, ",
        f"model swin, weights {'a' * 12} from a.pth (layout mmdet, sha256 {'d' * 12})",
        "manifest /data/list.csv (auto) checkpoint swin_t_coco precision fp32, score_threshold 0.3, 1 class threshold",
        "code maskfleet 0.1+abc",
    ):
        assert words in text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"state": RunState.NOTHING_TO_DO}, "finished; the last run found nothing to do"),
        ({"state": RunState.TOO_MANY_FAILURES}, "finished, with more failed images than output.max_failed_fraction"),
        ({"state": RunState.STOPPED}, "stopped by a signal; the same command goes on"),
        ({"state": RunState.STOPPED_BY_FAILURES, "this_run": ThisRun(error="9 of 9")}, "as output.stop says: 9 of 9"),
        ({"state": RunState.FAILED, "this_run": ThisRun(error="no room")}, "state failed: no room"),
        ({"state": RunState.RUNNING}, "state died: run.json says that a run is at work, but none holds the lock"),
    ],
)
def test_how_it_ended(out: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, object], words: str) -> None:
    replace(REPORT, **changes).write(Uri(str(out)))
    assert words in shown(capsys, str(out))


def test_when_it_ended_whoever_wrote_the_report_later(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ended = datetime(2026, 1, 2, 3, 9, 5, tzinfo=timezone.utc)
    times = f"run {RUN}, begun 2026-01-02 03:04:05 UTC ended 2026-01-02 03:09:05 UTC"
    replace(REPORT, ended=ended).write(Uri(str(out)))
    assert f"state finished {times} images" in shown(capsys, str(out))
    for state in (RunState.NOTHING_TO_DO, RunState.TOO_MANY_FAILURES):
        replace(REPORT, state=state, ended=ended, looked_again="20260103T030405-00000003").write(Uri(str(out)))
        text = shown(capsys, str(out))
        assert f"{times} looked at again 2026-01-03 03:04:05 UTC, nothing to do images" in text


@pytest.mark.parametrize(
    ("changes", "tells"),
    [
        ({}, True),
        ({"state": RunState.NOTHING_TO_DO}, False),
        ({"state": RunState.TOO_MANY_FAILURES, "looked_again": RUN}, False),
    ],
)
def test_when_a_run_of_an_earlier_release_ended(
    out: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, object], tells: bool
) -> None:
    """Only the time of the file tells, and that may be a later run's."""
    replace(REPORT, **changes).write(Uri(str(out)))
    os.utime(out / "run.json", (1_767_323_345, 1_767_323_345))
    assert ("ended 2026-01-02 03:09:05 UTC" in shown(capsys, str(out))) is tells


def test_a_run_at_work(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    running = replace(REPORT, state=RunState.RUNNING, images=ImageCounts(), this_run=ThisRun(images=21))
    running.write(Uri(str(out)))
    with OutputLock(Uri(str(out)), RUN):
        text = shown(capsys, str(out))
    holder = new_holder(RUN, 60.0)
    for words in (
        "state running since 2026-01-02 03:04:05 UTC (",
        f"run {RUN} on {holder.host}, pid {holder.pid}",
        "last sign of life 0.",
        "images 21 in the manifest 15 annotated 5 failed (25.00%) 1 pending (4.76%)",
        "speed 20 images written by this run, ",
    ):
        assert words in text


def test_a_later_run_that_has_said_nothing_yet(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with OutputLock(Uri(str(out)), "20260103T030405-00000003"):
        text = shown(capsys, str(out))
    for words in (
        "state running since 2026-01-03 03:04:05 UTC (",
        "it is looking for what there is to do; below, the run before it",
        "images the manifest is being counted 15 annotated",
        "speed the run before: 20 images in 10.0 s",
    ):
        assert words in text


def test_s3(s3: S3Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_output(Uri("s3://bucket/some/out"))
    text = shown(capsys, "s3://bucket/some/out", "--failed", str(tmp_path / "failed.csv"))
    assert "15 annotated 5 failed" in text
    assert text.endswith(f"5 failed images: {tmp_path}/failed.csv ")


def test_who_reads_may_stop(out: Path, tmp_path: Path) -> None:
    """The reader is gone before the first line comes; the table of failed images is written all the same."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "jobs.show", str(out), "--failed", str(tmp_path / "failed.csv")]
    with os.fdopen(writing) as stdout:
        ran = subprocess.run(command, cwd=ROOT, stdout=stdout, stderr=subprocess.PIPE, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert len((tmp_path / "failed.csv").read_text().splitlines()) == 6


def test_a_terminal_obeys_nobody(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    replace(REPORT, state=RunState.FAILED, this_run=ThisRun(error="a\x1b[2Jb\u202ec\nd")).write(Uri(str(out)))
    assert "failed: a\\x1b[2Jb\\u202ec" in shown(capsys, str(out))


@pytest.mark.parametrize("error", ["cannot read https://me:hunter2@host/a?X-Amz-Signature=hunter2: gone", "x" * 10**6])
def test_what_others_wrote_is_said_without_secrets_and_in_short(
    out: Path, capsys: pytest.CaptureFixture[str], error: str
) -> None:
    replace(REPORT, state=RunState.FAILED, this_run=ThisRun(error=error)).write(Uri(str(out)))
    said = shown(capsys, str(out))
    assert "hunter2" not in said
    assert len(said) < 10_000


class TestFailed:
    def test_every_failed_row(self, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = tmp_path / "new" / "failed.csv"
        assert "5 failed images" in shown(capsys, str(out), "--failed", str(path))
        rows = ds.dataset(out / "data").to_table(columns=list(COLUMNS), filter=ds.field("status") == "failed")
        with path.open(newline="") as file:
            assert list(csv.DictReader(file)) == [{k: str(v) for k, v in row.items()} for row in rows.to_pylist()]
        assert [file.name for file in path.parent.iterdir()] == ["failed.csv"]

    def test_an_earlier_one_is_replaced(self, out: Path, tmp_path: Path) -> None:
        path = tmp_path / "failed.csv"
        assert main([str(out), "--failed", str(path)]) == 0
        first = path.read_bytes()
        OutputStore(Uri(str(out))).strip_failed(lambda: None)
        assert main([str(out), "--failed", str(path)]) == 0
        assert path.read_bytes() == first.splitlines(keepends=True)[0]

    @pytest.mark.parametrize("content", ["", "image_id,image_uri\r\n", "image_id;mine\n"])
    def test_a_file_of_the_users_stays(
        self, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str
    ) -> None:
        path = tmp_path / "mine.csv"
        path.write_text(content, newline="")
        assert main([str(out), "--failed", str(path)]) == 2
        assert f"{path} is in the way" in capsys.readouterr().err
        assert path.read_bytes() == content.encode()

    @pytest.mark.parametrize(
        ("place", "words"), [("{out}/data/failed.csv", "is in the output"), ("s3://bucket/x.csv", "a local file")]
    )
    def test_other_places(self, out: Path, capsys: pytest.CaptureFixture[str], place: str, words: str) -> None:
        assert main([str(out), "--failed", place.format(out=out)]) == 2
        assert words in capsys.readouterr().err
        assert sorted(path.name for path in out.iterdir()) == ["data", "run.json"]

    def test_damage_is_an_exit_code(self, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        [file] = (out / "data").iterdir()
        file.write_bytes(file.read_bytes()[:-5])
        assert main([str(out)]) == 0
        assert f"problems {out}/data/{file.name} is cut off" in re.sub(r"\s+", " ", capsys.readouterr().out)
        assert main([str(out), "--failed", str(tmp_path / "failed.csv")]) == 1
        assert "lacks the failed images of 1 file" in capsys.readouterr().err


def test_no_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none")]) == 2
    reason = "does not exist, or is empty: it is no output of an annotate job"
    assert capsys.readouterr().err == f"exit code 2: OutputError: {tmp_path}/none {reason}\n"
