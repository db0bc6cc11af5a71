"""What Ray says that is no news is left out, and nothing else."""

from __future__ import annotations

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
    assert not context.issue_detectors_config.detectors  # Ray's own words: "To disable issue detection, run ..."
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
