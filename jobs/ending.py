"""How a job logs and how it ends: exit codes, and the last line of its log."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable

from pipeline.errors import RunError, UserError
from pipeline.storage.uris import hide_secrets

OK, FAILED, BAD_INPUT = 0, 1, 2


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
    except RunError as error:
        return end(logger, FAILED, f"{type(error).__name__}: {error}")
    except UserError as error:
        return end(logger, BAD_INPUT, f"{type(error).__name__}: {error}")
    except Exception as error:
        logger.exception(advice)
        first_line, *_ = hide_secrets(str(error)).splitlines() or [""]
        return end(logger, FAILED, f"{type(error).__name__}: {first_line}")


def end(logger: logging.Logger, code: int, message: str) -> int:
    """The last line of the log: `ray job status` knows only success and failure."""
    logger.log(logging.INFO if code == OK else logging.ERROR, "exit code %d: %s", code, message)
    return code
