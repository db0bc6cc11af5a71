"""How a job logs and how it ends: exit codes, the last line of its log, and signals."""

from __future__ import annotations

import errno
import functools
import logging
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from pipeline.cluster import signals
from pipeline.cluster.cause import Cause, cause_of
from pipeline.errors import RunError, UserError
from pipeline.messages.timing import REPLACES_LINE
from pipeline.storage.uris import hide_secrets

OK, FAILED, BAD_INPUT = 0, 1, 2

_ALLOWED = "it must be there, and user {user} (or the keys in use) allowed to use it"
_CURES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), (FAILED, "make room there, then run the same command again")),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), (FAILED, "allow more open files (ulimit -n), then run it again")),
    **dict.fromkeys((errno.EIO, errno.ESTALE), (FAILED, "the disk or the mount failed; run the same command again")),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT), (BAD_INPUT, _ALLOWED)),
    **dict.fromkeys(
        (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY),
        (BAD_INPUT, "something else is at this path: give another one"),
    ),
    **dict.fromkeys((errno.ENAMETOOLONG, errno.ELOOP), (BAD_INPUT, "give another path")),
}
_MENDED_ELSEWHERE = (PermissionError, FileNotFoundError, NotADirectoryError, IsADirectoryError)


def set_up_log() -> None:
    """Lines with time and level on the standard error."""
    _open_standard_files()
    handler = _Lines(sys.stderr)
    handler.setFormatter(_WithoutSecrets("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # below that it speaks of its fonts


def _open_standard_files() -> None:
    """Where whoever starts the process closed one, it is nowhere: else the next file that is opened, one of the output
    say, took its number, and what C++ and the handler of signals say would be written into that.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # which takes the lowest number that is free
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115


class _Lines(logging.StreamHandler):
    """On a terminal a line takes the place of the progress line, which comes again."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Handler`."""
        return f"{REPLACES_LINE if self.stream.isatty() else ''}{super().format(record)}"


class _WithoutSecrets(logging.Formatter):
    """Hides the secrets of URIs that others wrote into a message or an error, above all into a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        return hide_secrets(super().format(record))


def run(logger: logging.Logger, work: Callable[[], int], advice: str) -> int:
    """A job from its first setting to its exit code, whatever happens.

    Args:
        logger: the job's; its last line says how it ended.
        work: the job; returns its exit code.
        advice: after a signal, and an error that nobody foresaw: what is left, and what to do.
    """
    with signals.taken_over():
        try:
            return work()
        except KeyboardInterrupt:
            code, name = _signal_code()
            return end(logger, code, f"stopped by {name}; {advice}")
        except Exception as error:
            logger.debug("the job failed; %s", advice, exc_info=True)
            verdict = _judged(error, advice)
            if verdict.above:
                logger.error("%s", verdict.above)
            return end(logger, verdict.code, verdict.line)


class _Verdict(NamedTuple):
    """On an error: the exit code, the last line, and what stands above it where a line cannot say all."""

    code: int
    line: str
    above: str = ""


def _judged(error: Exception, advice: str) -> _Verdict:
    cause = cause_of(error)
    said = hide_secrets(f"{cause.name}: {cause.message}")
    first, *more = said.splitlines()
    if issubclass(cause.kind, RunError | UserError):
        code = FAILED if issubclass(cause.kind, RunError) else BAD_INPUT
        return _Verdict(code, f"{first}, listed above", said) if more else _Verdict(code, said)
    if issubclass(cause.kind, OSError):
        return _Verdict(*_of_system(cause))
    trace = "".join(traceback.format_exception(error)).rstrip()
    return _Verdict(FAILED, f"{first}; {advice}", hide_secrets(trace))


def _of_system(cause: Cause) -> tuple[int, str]:
    """The exit code and the last line for a disk, a folder or a store that does not do what is asked of it."""
    number = re.search(r"\[Errno (\d+)\]", cause.message)
    code = int(number[1]) if number else None
    # A file is written under a hidden name beside its place, which nobody knows.
    line = re.sub(r"/\.[^/]*\.[0-9a-f]{32}\.tmp\b", "", hide_secrets(cause.line()))
    if code is None and issubclass(cause.kind, _MENDED_ELSEWHERE):
        code = errno.EACCES
    if code not in _CURES:
        return FAILED, line
    exit_code, cure = _CURES[code]
    return exit_code, f"{line}; {cure.format(user=os.geteuid())}"


class Main(Protocol):
    """A command; without arguments it takes those of the process."""

    def __call__(self, argv: Sequence[str] | None = None) -> int: ...


def ends_in_order(advice: str) -> Callable[[Main], Main]:
    """For the ``main`` of a command that keeps no log: errors and signals end it as they end a job.

    Args:
        advice: after a signal, and an error that nobody foresaw: what is left, and what to do.
    """

    def decorate(main: Main) -> Main:
        @functools.wraps(main)
        def in_order(argv: Sequence[str] | None = None) -> int:
            _open_standard_files()
            with signals.taken_over():
                try:
                    return main(argv)
                except KeyboardInterrupt:
                    code, name = _signal_code()
                    return say_end(code, f"stopped by {name}; {advice}")
                except Exception as error:
                    verdict = _judged(error, advice)
                    if verdict.above:
                        print(verdict.above, file=sys.stderr)
                    return say_end(verdict.code, verdict.line)

        return in_order

    return decorate


def _signal_code() -> tuple[int, str]:
    """The exit code of shells for what is ended by a signal, and the signal's name."""
    number = signals.received() or signal.SIGINT
    return 128 + number, number.name


def say(text: str) -> None:
    """A result, to whoever still reads: ``| head`` has soon seen enough, and a pager may be left.

    What the encoding of the standard output does not have, as names that are no UTF-8 in any, is escaped.
    """
    try:
        try:
            print(text, flush=True)
        except UnicodeEncodeError as error:
            print(text.encode(error.encoding, "backslashreplace").decode(error.encoding), flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what follows, and for Python's own end


def say_end(code: int, message: str) -> int:
    """The last line of a command that keeps no log."""
    print(f"exit code {code}: {message}", file=sys.stderr, flush=True)
    return code


def end(logger: logging.Logger, code: int, message: str) -> int:
    """The last line of the log: `ray job status` knows only success and failure."""
    logger.log(logging.INFO if code == OK else logging.ERROR, "exit code %d: %s", code, message)
    return code
