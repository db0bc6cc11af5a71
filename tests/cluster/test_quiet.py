"""What Ray says that is no news is left out, and nothing else."""

from __future__ import annotations

import errno
import logging
import os
import re
import warnings

import pytest
from ray._private.log import PlainRayHandler
from ray.data import DataContext

from pipeline.cluster.quiet import quiet, without_lines

# As Ray 2.60 writes it.
ACTOR_LINE = (
    b"[2026-11-27 00:33:23,927 E 14149 14149] core_worker.cc:2465: Actor with class name: 'MapWorker(MapBatches("
    b"SegmentActor))' and ID: '0c37' has constructor arguments in the object store and max_restarts > 0. If the "
    b"arguments in the object store go out of scope or are lost, the actor restart will fail.\n"
)
ERROR = b"[2026-11-27 00:33:24,001 E 14149 14149] core_worker.cc:99: The object store is full\n"


def test_other_lines_come_through_in_their_order(capfd: pytest.CaptureFixture[str]) -> None:
    def write() -> None:
        with without_lines(re.compile(rb"[^\n]*has constructor arguments[^\n]*\n")):
            for line in (b"first\n", ACTOR_LINE, ERROR, ACTOR_LINE, b"no end"):
                os.write(2, line)
            raise KeyError

    with pytest.raises(KeyError):
        write()
    os.write(2, b" of line\n")
    assert capfd.readouterr().err.encode() == b"first\n" + ERROR + b"no end of line\n"


@pytest.mark.parametrize(("call", "number"), [("dup", errno.EBADF), ("memfd_create", errno.EMFILE)])
def test_what_cannot_be_held_back_is_seen(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], call: str, number: int
) -> None:
    """The standard error is closed, or there are no more files: no reason not to start an actor."""

    def fail(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(os, call, fail)
        with without_lines(re.compile(rb"[^\n]*\n")):
            os.write(2, b"a line\n")
    assert capfd.readouterr().err == "a line\n"


def test_an_error_in_the_block_is_that_error() -> None:
    with pytest.raises(OSError, match="of the actor"), without_lines(re.compile(rb"x\n")):
        raise OSError("of the actor")


def test_a_run_with_few_blocks_is_no_warning() -> None:
    said = [
        "The maximum number of concurrent tasks for 'MapBatches(Encode)' is set to 2, but the operator only received 1",
        "The minimum number of concurrent actors for 'MapBatches(SegmentActor)' is set to 2, but the operator only",
        "Something else",
    ]
    with warnings.catch_warnings(record=True) as seen:
        warnings.resetwarnings()
        warnings.simplefilter("always")
        quiet(DataContext.get_current())
        seen.clear()
        for line in said:
            warnings.warn(line, stacklevel=1)
    assert [str(warning.message) for warning in seen] == ["Something else"]


def test_warnings_and_errors_of_ray_data_are_said() -> None:
    context = quiet(quiet(DataContext.get_current()))
    assert not context.enable_progress_bars
    detectors = context.issue_detectors_config
    assert detectors.high_memory_detector_config.detection_time_interval_s < 0  # Ray's own way to turn it off
    assert detectors.hanging_detector_config.detection_time_interval_s > 0
    (console,) = (h for h in logging.getLogger("ray.data").handlers if isinstance(h, PlainRayHandler))
    said = [
        message
        for level, message in (
            (logging.INFO, "✔️  Dataset dataset_1_0 execution finished in 28.82 seconds"),
            (logging.WARNING, "Progress bars disabled. To enable, set `enable_progress_bars = True`."),
            (logging.WARNING, "Cluster resources are not enough to run any task"),
            (logging.ERROR, "Exception occurred in Ray Data"),
        )
        if console.filter(logging.makeLogRecord({"levelno": level, "msg": message}))
    ]
    assert said == ["Cluster resources are not enough to run any task", "Exception occurred in Ray Data"]
