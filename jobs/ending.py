"""How a job logs and how it ends: exit codes, the last line of its log, and signals."""

from __future__ import annotations

import errno
import functools
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Protocol

from pipeline.cluster import signals
from pipeline.cluster.cause import Cause, cause_of
from pipeline.errors import RunError, UserError
from pipeline.storage.uris import hide_secrets

OK, FAILED, BAD_INPUT = 0, 1, 2

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.EIO, errno.ESTALE}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG}
_MENDED_ELSEWHERE = (PermissionError, FileNotFoundError, NotADirectoryError, IsADirectoryError)


def set_up_log() -> None:
    """Lines with time and level on the standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_WithoutSecrets("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


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
            cause = cause_of(error)
            if issubclass(cause.kind, RunError):
                return end(logger, FAILED, f"{cause.name}: {cause.message}")
            if issubclass(cause.kind, UserError):
                return end(logger, BAD_INPUT, f"{cause.name}: {cause.message}")
            if issubclass(cause.kind, OSError):
                logger.debug("the job failed; %s", advice, exc_info=True)
                return end(logger, *_of_system(cause))
            logger.exception("the job failed; %s", advice)
            return end(logger, FAILED, hide_secrets(cause.line()))


def _of_system(cause: Cause) -> tuple[int, str]:
    """The exit code and the last line for a disk, a folder or a store that does not do what is asked of it."""
    number = re.search(r"\[Errno (\d+)\]", cause.message)
    code = int(number[1]) if number else None
    # A file is written under a hidden name beside its place, which nobody knows.
    line = re.sub(r"/\.[^/]*\.[0-9a-f]{32}\.tmp\b", "", hide_secrets(cause.line()))
    if code in _FULL:
        return FAILED, f"{line}; make room there, then run the same command again"
    if code in _FORBIDDEN or (code is None and issubclass(cause.kind, _MENDED_ELSEWHERE)):
        return BAD_INPUT, f"{line}; it must be there, and user {os.geteuid()} (or the keys in use) allowed to use it"
    return FAILED, line


class Main(Protocol):
    """A command; without arguments it takes those of the process."""

    def __call__(self, argv: Sequence[str] | None = None) -> int: ...


def ends_in_order(advice: str) -> Callable[[Main], Main]:
    """For the ``main`` of a command that keeps no log: SIGINT and SIGTERM end it as they end a job.

    Args:
        advice: what is left, and what to do.
    """

    def decorate(main: Main) -> Main:
        @functools.wraps(main)
        def in_order(argv: Sequence[str] | None = None) -> int:
            with signals.taken_over():
                try:
                    return main(argv)
                except KeyboardInterrupt:
                    code, name = _signal_code()
                    print(f"exit code {code}: stopped by {name}; {advice}", file=sys.stderr)
                    return code

        return in_order

    return decorate


def _signal_code() -> tuple[int, str]:
    """The exit code of shells for what is ended by a signal, and the signal's name."""
    number = signals.received() or signal.SIGINT
    return 128 + number, number.name


def end(logger: logging.Logger, code: int, message: str) -> int:
    """The last line of the log: `ray job status` knows only success and failure."""
    logger.log(logging.INFO if code == OK else logging.ERROR, "exit code %d: %s", code, message)
    return code
