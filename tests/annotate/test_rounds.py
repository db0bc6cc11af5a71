"""What a person is told of a run, line by line; tests/jobs/test_terminal.py has whole runs."""

from __future__ import annotations

import io
import logging
import sys
import time

import pytest

from pipeline.annotate.progress import Progress, Snapshot
from pipeline.annotate.rounds import _Told
from pipeline.annotate.stages.stage import StageCounts


def moment(segmented: int = 0, starting: int = 1, first_failed: tuple[str, ...] = ()) -> Progress:
    counts = StageCounts(segmented=segmented, written=segmented, first_failed=first_failed)
    return Progress(100, Snapshot(counts, float(segmented), starting, int(segmented > 0)), 10.0, 1, 8)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_first_failures_are_named_once_and_what_terminals_obey_is_not(caplog: pytest.LogCaptureFixture) -> None:
    """The monitor may begin anew, and then has other first ones: three are enough."""
    told = _Told(1000.0)
    for failed in [(), ("a: timeout: slow",), ("a: timeout: slow", "b\x1b[2J: not_found: no"), ("c: x: y", "d: x: y")]:
        told.tell(moment(first_failed=failed))
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [
        "failed: a: timeout: slow",
        "failed: b\\x1b[2J: not_found: no",
        "failed: c: x: y",
    ]


def test_in_a_log_each_step_is_a_line_and_then_one_comes_now_and_then(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    told = _Told(10.0)
    for second in range(1, 51):
        now += 1
        told.tell(moment(starting=0) if second < 30 else moment(segmented=second))
    lines = [message.split(" of the model")[0].split(" written")[0] for message in caplog.messages]
    assert lines == ["waiting for 1 replica", *(f"{n}/100 images" for n in (30, 40, 50))]


def test_on_a_terminal_a_line_replaces_the_one_before(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    told = _Told(10.0)
    told.end()
    assert terminal.getvalue() == ""
    told.tell(moment())
    told.tell(moment(segmented=3))
    told.end()
    first, second, last = terminal.getvalue().removeprefix("\r\033[K").split("\r\033[K")
    assert first == "loading the model: 0 of 1 replica ready"
    assert second.startswith("3/100 images written")
    assert last == f"{second}\n"
    assert caplog.messages == []
