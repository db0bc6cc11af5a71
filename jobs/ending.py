"""How a job logs and how it ends: exit codes, and the last line of its log."""

from __future__ import annotations

import errno
import logging
import os
import re
import sys
from collections.abc import Callable

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
        advice: after an error that nobody foresaw: what is left, and what to do.
    """
    try:
        return work()
    except Exception as error:
        cause = cause_of(error)
        if issubclass(cause.kind, RunError):
            return end(logger, FAILED, f"{cause.name}: {cause.message}")
        if issubclass(cause.kind, UserError):
            return end(logger, BAD_INPUT, f"{cause.name}: {cause.message}")
        if issubclass(cause.kind, OSError):
            logger.debug(advice, exc_info=True)
            return end(logger, *_of_system(cause, error))
        logger.exception(advice)
        return end(logger, FAILED, hide_secrets(cause.line()))


def _of_system(cause: Cause, error: BaseException) -> tuple[int, str]:
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


def end(logger: logging.Logger, code: int, message: str) -> int:
    """The last line of the log: `ray job status` knows only success and failure."""
    logger.log(logging.INFO if code == OK else logging.ERROR, "exit code %d: %s", code, message)
    return code
