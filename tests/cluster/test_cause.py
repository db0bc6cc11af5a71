"""What people read of an error that came through Ray."""

from __future__ import annotations

import errno
import logging
import re

import pytest
import ray
from ray.exceptions import RayActorError, RayTaskError, UserCodeException

from jobs.ending import run
from pipeline.annotations.data_file import OutputError
from pipeline.cluster.cause import cause_of
from pipeline.errors import RunError, UserError

# As Ray 2.60 writes them.
_IN = "\x1b[36mray::{}()\x1b[39m (pid=1, ip=10.0.0.1)\n"
_CHAIN = "\n\nThe above exception was the direct cause of the following exception:\n\n"
_RAISED = '  File "/a/b.py", line 6, in f\n    raise OutputError("x")\n    ^^^^^^^^^^^\n'
OF_DATA = _CHAIN.join(
    [
        f"{_IN.format('Map(f)')}OSError: [Errno 28] No space left on device: '/x'",
        f"{_IN.format('Map(f)')}{_RAISED}pipeline.annotations.data_file.OutputError: out/x cannot be used: move it",
        f"{_IN.format('Map(f)')}ray.exceptions.UserCodeException: UDF failed to process a data block.\n"
        "Failed to apply UDF transform after 1/1 attempts (total backoff 0.0s).",
    ]
)
OF_AN_ACTOR = (
    f"The actor died because of an error raised in its creation task, {_IN.format('A.__init__')}"
    f"           ^^^^^^^^^^^^^^^^^\n{_RAISED}ValueError: init fails"
)


def of_task(cause: Exception, text: str = "") -> Exception:
    """As `ray.get` raises it."""
    trace = text or f"{_IN.format('f')}{_RAISED}{type(cause).__name__}: {cause}"
    error = RayTaskError("f", trace, cause, "ray::f", 1, "10.0.0.1")
    return error.as_instanceof_cause()


@pytest.mark.parametrize(
    ("error", "kind", "line"),
    [
        pytest.param(KeyError("a"), KeyError, "KeyError: 'a'", id="not Ray's"),
        pytest.param(of_task(OSError(28, "No space", "/x")), OSError, "OSError: [Errno 28] No space: '/x'", id="task"),
        pytest.param(of_task(OutputError("out")), OutputError, "OutputError: out", id="task, an error of ours"),
        pytest.param(
            of_task(UserCodeException("UDF failed"), OF_DATA),
            OutputError,
            "OutputError: out/x cannot be used: move it",
            id="Ray Data",
        ),
        pytest.param(of_task(of_task(OutputError("in"))), OutputError, "OutputError: in", id="task of a task"),
        pytest.param(RayActorError(error_msg=OF_AN_ACTOR), ValueError, "ValueError: init fails", id="actor"),
        pytest.param(ray.exceptions.GetTimeoutError("late"), Exception, "GetTimeoutError: late", id="Ray's own"),
    ],
)
def test_the_cause_is_found(error: Exception, kind: type[Exception], line: str) -> None:
    cause = cause_of(error)
    assert issubclass(cause.kind, kind)
    assert cause.line() == line
    assert "\x1b" not in cause.message


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (UserError("mend it"), 2, "UserError: mend it"),
        (RunError("again"), 1, "RunError: again"),
        (of_task(OutputError("mend it")), 2, "OutputError: mend it"),
        (of_task(UserCodeException("UDF failed"), OF_DATA), 2, "OutputError: out/x cannot be used"),
        (OSError(errno.ENOSPC, "No space left on device", f"/out/.lock.json.{'a' * 32}.tmp"), 1, "'/out'; make room"),
        (of_task(OSError(errno.ENOSPC, "No space left on device", "/out")), 1, "'/out'; make room there"),
        (
            PermissionError(errno.EACCES, "Permission denied", "/out"),
            2,
            r"PermissionError: \[Errno 13\] .*'/out'; it must",
        ),
        (OSError(errno.EROFS, "Read-only file system", "/out"), 2, "Read-only file system: '/out'; it must be"),
        (
            NotADirectoryError(errno.ENOTDIR, "Not a directory", "/file/out"),
            2,
            "'/file/out'; something else is at this path",
        ),
        (
            FileNotFoundError("s3://bucket/out: no such object, or no such bucket"),
            2,
            "no such bucket; it must be there",
        ),
        (PermissionError("s3://bucket/out: HTTP 403 at attempt 1"), 2, "HTTP 403 at attempt 1; it must be there"),
        (OSError("s3://bucket/out: no answer (GenericError) at attempt 6"), 1, "no answer"),
        (OSError("https://me:SECRET@host/out fails"), 1, "https://host/out fails"),
    ],
)
def test_the_last_line_has_the_cause_and_no_traceback(
    caplog: pytest.LogCaptureFixture, error: Exception, code: int, words: str
) -> None:
    def work() -> int:
        raise error

    with caplog.at_level(logging.INFO):
        assert run(logging.getLogger("jobs.test"), work, "advice") == code
    last = caplog.records[-1].getMessage()
    assert len(caplog.records) == 1
    assert last.startswith(f"exit code {code}: ")
    assert re.search(words, last)
    assert not re.search(r"SECRET|RayTaskError|UDF|\x1b|\.tmp|\n", last)


def test_what_nobody_foresaw_keeps_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    assert run(logging.getLogger("jobs.test"), lambda: 1 // 0, "advice") == 1
    first, last = caplog.records
    assert "Traceback (most recent call last)" in first.getMessage()
    assert last.getMessage() == "exit code 1: ZeroDivisionError: integer division or modulo by zero; advice"
