"""How a job logs and how it ends: exit codes, and the last line of its log."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable

from pipeline.errors import RunError, UserError

OK, FAILED, BAD_INPUT = 0, 1, 2


def set_up_log() -> None:
    """Lines with time and level on the standard error."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)


def run(logger: logging.Logger, work: Callable[[], int], advice: str) -> int:
    """A job from its first setting to its exit code, whatever happens.

    Args:
        logger: of the job.
        work: the job; returns its exit code.
        advice: after an error that nobody foresaw: what is left, and what to do.
    """
    try:
        return work()
    except RunError as error:
        return end(logger, FAILED, f"{type(error).__name__}: {error}")
    except UserError as error:
        return end(logger, BAD_INPUT, f"{type(error).__name__}: {error}")
    except Exception as error:
        logger.exception(advice)
        return end(logger, FAILED, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")


def end(logger: logging.Logger, code: int, message: str) -> int:
    """The last line of the log: `ray job status` knows only success and failure."""
    logger.log(logging.INFO if code == OK else logging.ERROR, "exit code %d: %s", code, message)
    return code
