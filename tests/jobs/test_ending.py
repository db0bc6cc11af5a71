"""Signals end jobs in order: real processes, real signals. Exit codes are those of shells."""

from __future__ import annotations

import io
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs import ending

ROOT = Path(__file__).parents[2]
BEGIN = """
import logging, signal, sys, time
from pathlib import Path
from jobs import ending
from pipeline.cluster import signals
from pipeline.storage.whole_file import write_whole

folder = Path(sys.argv[1])

def wait():
    (folder / "ready").touch()
    time.sleep(60)
"""
END = """
ending.set_up_log()
sys.exit(ending.run(logging.getLogger("jobs.it"), work, "run it again"))
"""
JOB = """
def work():
    with write_whole(folder / "result") as temporary:
        temporary.write_text("half of it")
        wait()
    return 0
"""
COMMAND = """
@ending.ends_in_order("run it again")
def main(argv=None):
    with write_whole(folder / "result"):
        wait()
    return 0

sys.exit(main())
"""
# What is in hand is finished, however long it takes.
DEFERRED = """
def work():
    with signals.deferred() as stopping:
        (folder / "ready").touch()
        while not stopping():
            time.sleep(0.01)
        time.sleep(float(sys.argv[2]))
        (folder / "finished").touch()
    (folder / "not reached").touch()
    return 0
"""
LATE = """
put_back = signals._put_back

def interrupted(before):
    signal.raise_signal(signal.SIGTERM)
    put_back(before)

signals._put_back = interrupted

def work():
    (folder / "ready").touch()
    return 0
"""
# As Ray does while it starts.
RAYS_OWN = """
def work():
    with signals.kept():
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
        if sys.argv[2] == "while it starts":
            wait()
    wait()
    return 0
"""

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """A process that has come to where it waits."""

    def started(code: str, *arguments: str, ignored: bool = False) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", BEGIN + code, str(tmp_path), *arguments]
        # Inherited: not whatever this process was told to ignore.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN if ignored else signal.default_int_handler)
        try:
            process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        finally:
            signal.signal(signal.SIGINT, before)
        while not (tmp_path / "ready").exists() and process.poll() is None:
            time.sleep(0.01)
        return process

    return started


@pytest.mark.parametrize("code", [JOB + END, COMMAND], ids=["job", "command"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_ends_in_order(start: Start, tmp_path: Path, code: str, number: signal.Signals) -> None:
    process = start(code)
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 128 + number, said
    assert said.splitlines()[-1].endswith(f"exit code {128 + number}: stopped by {number.name}; run it again")
    assert "Traceback" not in said
    assert [path.name for path in tmp_path.iterdir()] == ["ready"]  # nothing temporary is left


def test_work_in_hand_is_finished_first(start: Start, tmp_path: Path) -> None:
    process = start(DEFERRED + END, "0.2")
    process.send_signal(signal.SIGTERM)
    time.sleep(0.05)
    process.send_signal(signal.SIGTERM)  # of a wrapper that sends to its child and to the group
    process.communicate(timeout=30)
    assert process.returncode == 143
    assert {path.name for path in tmp_path.iterdir()} == {"ready", "finished"}


def test_the_second_signal_ends_at_once(start: Start, tmp_path: Path) -> None:
    process = start(DEFERRED + END, "60")
    process.send_signal(signal.SIGTERM)
    time.sleep(1.2)
    sent = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert time.monotonic() - sent < 5
    assert not (tmp_path / "finished").exists()


def test_a_signal_at_the_very_end_changes_nothing(start: Start) -> None:
    """The job has said how it ended, and the handlers are about to be those of before."""
    process = start(LATE + END)
    _, said = process.communicate(timeout=30)
    assert (process.returncode, "Traceback" in said) == (0, False), said


@pytest.mark.parametrize("when", ["while it starts", "later"])
def test_handlers_of_ray_change_nothing(start: Start, when: str) -> None:
    process = start(RAYS_OWN + END, when)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 143
    assert said.splitlines()[-1].endswith("exit code 143: stopped by SIGTERM; run it again")


def test_what_is_ignored_stays_ignored(start: Start) -> None:
    process = start(JOB + END, ignored=True)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 143


@pytest.mark.parametrize(("is_terminal", "begin"), [(True, "\r\033[K"), (False, "")])
def test_a_line_takes_the_place_of_one_that_has_no_end(is_terminal: bool, begin: str) -> None:
    stream = io.StringIO()
    stream.isatty = lambda: is_terminal  # type: ignore[method-assign]
    handler = ending._Lines(stream)
    handler.emit(logging.makeLogRecord({"msg": "a line"}))
    assert stream.getvalue() == f"{begin}a line\n"


def test_a_log_tells_nothing_of_fonts() -> None:
    script = "import logging; from jobs.ending import set_up_log; set_up_log(); "
    script += "logging.getLogger('matplotlib.font_manager').info('generated new fontManager'); logging.info('ours')"
    ran = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert [line.rpartition(": ")[2] for line in ran.stderr.splitlines()] == ["ours"]


@pytest.mark.parametrize(("encoding", "printed"), [("ascii", r"\xfc\u732b \udcff"), ("utf-8", "ü猫 \\udcff")])
def test_a_name_that_the_output_cannot_spell_is_escaped(encoding: str, printed: str) -> None:
    """The last of these is a byte of a file's name that is no UTF-8: an encoder of no encoding takes it."""
    done = subprocess.run(
        [sys.executable, "-c", r"from jobs.ending import say; say('\xfc\u732b \udcff')"],
        cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": encoding},
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout.decode(), done.stderr) == (0, f"{printed}\n", b"")


def test_a_closed_standard_error_is_no_file_of_ours(tmp_path: Path) -> None:
    """Started by ``2>&-``: the next file to be opened would get its number."""
    code = (
        "import os; from jobs.ending import set_up_log; set_up_log()\n"
        f"with open({str(tmp_path / 'file')!r}, 'w') as file: os.write(2, b'of a signal'); file.write('content')\n"
    )
    command = ["sh", "-c", 'exec "$0" "$@" 2>&-', sys.executable, "-c", code]
    assert subprocess.run(command, cwd=Path(__file__).parents[2], check=False, timeout=60).returncode == 0
    assert (tmp_path / "file").read_text() == "content"
