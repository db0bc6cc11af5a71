"""How a job logs and how it ends: exit codes, the last line of its log, and signals."""

from __future__ import annotations

import functools
import logging
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Protocol

from pipeline.cluster import signals
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
        advice: after a signal, and an error that nobody foresaw: what is left, and what to do.
    """
    with signals.taken_over():
        try:
            return work()
        except KeyboardInterrupt:
            code, name = _signal_code()
            return end(logger, code, f"stopped by {name}; {advice}")
        except RunError as error:
            return end(logger, FAILED, f"{type(error).__name__}: {error}")
        except UserError as error:
            return end(logger, BAD_INPUT, f"{type(error).__name__}: {error}")
        except Exception as error:
            logger.exception("the job failed; %s", advice)
            first_line, *_ = hide_secrets(str(error)).splitlines() or [""]
            return end(logger, FAILED, f"{type(error).__name__}: {first_line}")


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
