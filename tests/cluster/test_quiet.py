"""What Ray says is kept apart, and nothing else; a process that dies says where it lies."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cluster import quiet
from pipeline.cluster.quiet import Sieve, apart

ROOT = Path(__file__).parents[2]
# As Ray 2.60 writes them.
ACTOR_LINE = (
    b"[2026-11-27 00:33:23,927 E 14149 14149] core_worker.cc:2465: Actor with class name: 'MapWorker(MapBatches("
    b"SegmentActor))' and ID: '0c37' has constructor arguments in the object store and max_restarts > 0. If the "
    b"arguments in the object store go out of scope or are lost, the actor restart will fail.\n"
)
RAYS = [
    ACTOR_LINE,
    b"[2026-11-27 00:33:24,001 E 14149 14150] (raylet) node.cc:99: marked dead\n\t(1) it crashed\n\n",
    b"E0000 00:00:1795764359.767670   12345 chttp2_transport.cc:1182] ipv4:127.0.0.1:6379: Got goaway [0]\n",
    b"WARNING: All log messages before absl::InitializeLog() is called are written to STDERR\n",
]
OTHERS = [
    b"2026-11-27 07:23:44,580 INFO jobs.annotate: exit code 0: finished: /tmp/out\n",
    b"\r\x1b[K12/40 images written",
    b"[2026-11-27 00:33:24,001 C 14149 14149] core_worker.cc:99:  Check failed: node \n",
    b"*** StackTrace Information ***\n",
    b"Fatal Python error: Segmentation fault\n",
    b"double free or corruption (out)\n",
    b"Error: of a library\n",
    b"[notes]\n",
    b"\n",
]


@given(st.lists(st.sampled_from(RAYS + OTHERS)), st.lists(st.integers(1, 400)))
def test_a_line_goes_one_way_however_it_comes(lines: list[bytes], cuts: list[int]) -> None:
    # What follows a line that is left open belongs to it, and an empty line to what is before it.
    expected: tuple[list[bytes], list[bytes]] = ([], [])
    is_rays = in_line = False
    for line in lines:
        if not in_line and not (is_rays and line == b"\n"):
            is_rays = line in RAYS
        expected[not is_rays].append(line)
        in_line = not line.endswith(b"\n")
    rays, others = bytearray(), bytearray()
    sieve = Sieve(rays.extend, others.extend)
    rest = b"".join(lines)
    for cut in [*cuts, len(rest)]:
        sieve.take(rest[:cut])
        rest = rest[cut:]
    sieve.flush()
    assert (bytes(rays), bytes(others)) == tuple(b"".join(parts) for parts in expected)


def test_what_is_no_line_of_rays_does_not_wait_for_its_end() -> None:
    seen: list[bytes] = []
    sieve = Sieve(lambda part: None, seen.append)
    sieve.take(b"\r12/40")
    sieve.take(b" images")
    assert b"".join(seen) == b"\r12/40 images"


def run(code: str, folder: Path) -> tuple[int, str, str]:
    """Exit status, standard error and log of a process that says this within `apart`."""
    start = "import logging, os, sys, warnings\nfrom pipeline.cluster.quiet import apart\nlogging.basicConfig()\n"
    ended = subprocess.run(
        [sys.executable, "-c", start + code],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    (log,) = folder.glob("maskfleet-ray-*.log")
    return ended.returncode, ended.stderr, log.read_text()


def test_what_goes_where(tmp_path: Path) -> None:
    code = f"""
with apart() as words:
    words.kept = True
    os.write(2, {ACTOR_LINE!r})
    logging.getLogger("pipeline").warning("of a job")
    os.write(2, b"of C\\n")
    from ray._private import worker
    logging.getLogger("ray").error("of Ray's Python")
    worker.print_to_stdstream({{"lines": ["of the cluster"], "pid": "raylet", "is_err": False}}, ignore_prefix=False)
    exec("import warnings; warnings.warn('of Ray: hangs forever')", {{"__name__": "ray.data.some"}})
    warnings.warn("of a job: odd")
    print("a line of ours", file=sys.stderr)
    os.write(2, b"no end")
print(" of line; after it", file=sys.stderr)
1 / 0
"""
    status, seen, log = run(code, tmp_path)
    assert status == 1
    assert ACTOR_LINE.decode() in log
    said = re.findall(r"of Ray's Python|\(raylet\) of the cluster|of Ray: hangs forever", log)
    assert said == ["of Ray's Python", "(raylet) of the cluster", "of Ray: hangs forever"]
    for ours in ("WARNING:pipeline:of a job", "of C", "UserWarning: of a job: odd", "a line of ours"):
        assert re.search(rf"^.*{ours}$", seen, re.MULTILINE), seen
        assert ours not in log
    assert "no end of line; after it\n" in seen
    assert seen.endswith("ZeroDivisionError: division by zero\n")
    for rays in ("core_worker", "of Ray", "of the cluster", "what Ray said"):
        assert rays not in seen


@pytest.mark.parametrize(
    ("death", "status"),
    [
        ("os._exit(1)", 1),
        ("os.kill(os.getpid(), 9)", -signal.SIGKILL),
        ("import faulthandler, ctypes; faulthandler.enable(); ctypes.string_at(0)", -signal.SIGSEGV),
        ("import subprocess; subprocess.Popen(['sleep', '4'], stdout=2); os._exit(1)", 1),
    ],
    ids=["exit", "kill", "crash", "a child that lives on"],
)
def test_a_process_that_dies_says_its_last_words_and_where_the_others_lie(
    tmp_path: Path, death: str, status: int
) -> None:
    code = f"""
with apart():
    os.write(2, {ACTOR_LINE!r} + b"last words\\n")
    {death}
"""
    ended, seen, log = run(code, tmp_path)
    assert ended == status
    assert log == ACTOR_LINE.decode()
    assert "last words\n" in seen
    assert ("Segmentation fault" in seen) == (status == -signal.SIGSEGV)
    (path,) = tmp_path.glob("maskfleet-ray-*.log")
    assert seen.splitlines()[-1] == f"the process has ended without a word more; what Ray said is in {path}"


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(quiet.tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_the_log_is_moved_among_rays(temporary: Path) -> None:
    (temporary / "logs").mkdir()
    with apart() as words:
        os.write(2, ACTOR_LINE)
        words.move_to(temporary / "nowhere")
        words.move_to(temporary / "logs")
        logging.getLogger("ray").error("more")
    assert words.path is not None
    assert words.path.parent == temporary / "logs"
    assert ACTOR_LINE in words.path.read_bytes()
    assert "more" in words.path.read_text()
    with apart() as words:
        assert words.path is not None
        words.path.unlink()  # as who cleans up there does


@pytest.mark.parametrize("broken", ["os.pipe", "subprocess.Popen", "tempfile.mkstemp"])
def test_what_cannot_be_kept_apart_is_seen(
    temporary: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], broken: str
) -> None:
    """Files run out: no reason not to start."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(24, "Too many open files")

    before = len(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as patched:
        patched.setattr(f"pipeline.cluster.quiet.{broken}", fail)
        with apart():
            os.write(2, b"a line\n")
    assert capfd.readouterr().err == "a line\n"
    assert len(os.listdir("/proc/self/fd")) == before


def test_an_error_in_the_block_is_that_error_and_all_is_as_before(temporary: Path) -> None:
    before = sys.stderr, os.fstat(2).st_ino, len(os.listdir("/proc/self/fd"))
    with pytest.raises(ZeroDivisionError), apart():
        os.write(2, b"a line\n" * (1 // (os.fstat(2).st_ino == before[1])))
    assert (sys.stderr, os.fstat(2).st_ino, len(os.listdir("/proc/self/fd"))) == before


def test_ray_data_draws_no_bars() -> None:
    from ray.data import DataContext

    context = quiet.quiet(quiet.quiet(DataContext.get_current()))
    assert not context.enable_progress_bars
    assert not context.print_on_execution_start
    detectors = context.issue_detectors_config
    assert detectors.high_memory_detector_config.detection_time_interval_s < 0  # Ray's own way to turn it off
    assert detectors.hanging_detector_config.detection_time_interval_s > 0
