"""How a job logs and how it ends: exit codes, and the last line of its log."""

from __future__ import annotations

import logging
import sys

OK, FAILED, BAD_INPUT = 0, 1, 2


def set_up_log() -> None:
    """Lines with time and level on the standard error."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)


def end(logger: logging.Logger, code: int, message: str) -> int:
    """The last line of the log: `ray job status` knows only success and failure."""
    logger.log(logging.INFO if code == OK else logging.ERROR, "exit code %d: %s", code, message)
    return code


def end_with(logger: logging.Logger, code: int, error: Exception) -> int:
    """`end` with an error that says what to do."""
    return end(logger, code, f"{type(error).__name__}: {error}")


def end_unforeseen(logger: logging.Logger, error: Exception, advice: str) -> int:
    """`end` with an error that nobody expected, its traceback before it.

    Args:
        logger: of the job.
        error: being handled.
        advice: what is left, and what to do.
    """
    logger.exception(advice)
    return end(logger, FAILED, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
