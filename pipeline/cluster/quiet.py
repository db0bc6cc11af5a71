"""Ray Data without lines of its own: each job tells of its progress itself, and what looks like an error is one.

Ray says on every run that a dataset has finished, that progress bars are off, and, at the level of errors, that actors
get their arguments through the object store, which is how Ray Data makes them; where there is little to do, that
more could be done at a time; and every half minute, that a stage has not asked for the memory that it uses, which is
for whoever writes it. These lines alone are left out here; all of them but the last stay in Ray's own files, and
whatever else Ray has to say is said.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from ray._private.log import PlainRayHandler
from ray.data import DataContext
from ray.data._internal.execution.operators.actor_pool_map_operator import ActorPoolMapOperator

_NO_NEWS = ("Progress bars disabled", "Progress bars for operators disabled")
_NO_ERROR = re.compile(rb"[^\n]*has constructor arguments in the object store and max_restarts > 0[^\n]*\n")
_FEW_INPUTS = "The (maximum number of concurrent tasks|minimum number of concurrent actors) for "
_STDERR = 2
_redirecting = threading.Lock()


def quiet(context: DataContext) -> DataContext:
    """The same context, changed; and this process without the lines that say nothing."""
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.issue_detectors_config.high_memory_detector_config.detection_time_interval_s = -1
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, PlainRayHandler) and not any(isinstance(f, _News) for f in handler.filters):
            handler.addFilter(_News())
    warnings.filterwarnings("ignore", _FEW_INPUTS)
    _start_actors_quietly()
    return context


class _News(logging.Filter):
    """Of Ray Data's lines those that a person has to know of."""

    def filter(self, record: logging.LogRecord) -> bool:
        """See `logging.Filter`."""
        return record.levelno >= logging.WARNING and not record.getMessage().startswith(_NO_NEWS)


@functools.cache
def _start_actors_quietly() -> None:
    """The line on arguments is C++'s, in the thread that starts an actor, and no setting leaves it out alone."""
    start = getattr(ActorPoolMapOperator, "_start_actor", None)
    if start is None:
        return  # of another Ray: then the line is seen

    @functools.wraps(start)
    def start_quietly(*args: Any, **options: Any) -> Any:
        with without_lines(_NO_ERROR):
            return start(*args, **options)

    setattr(ActorPoolMapOperator, "_start_actor", start_quietly)  # noqa: B010  # mypy: a method


@contextmanager
def without_lines(pattern: re.Pattern[bytes]) -> Iterator[None]:
    """What is written to the standard error in the block is written at its end, without what matches.

    Where it cannot be held back, all of it is seen: nothing here is worth an error.

    Args:
        pattern: of whole lines, with their end.
    """
    with _redirecting, ExitStack() as held_back:
        with suppress(OSError, AttributeError):  # it is closed, files run out, or this is no Linux
            held_back.enter_context(_held_back(pattern))
        yield


@contextmanager
def _held_back(pattern: re.Pattern[bytes]) -> Iterator[None]:
    before = os.dup(_STDERR)
    try:
        # In memory: a disk may be full.
        with open(os.memfd_create("stderr"), "w+b", buffering=0) as held:
            os.dup2(held.fileno(), _STDERR)
            try:
                yield
            finally:
                os.dup2(before, _STDERR)
                held.seek(0)
                rest = memoryview(pattern.sub(b"", held.read()))
                with suppress(OSError):  # nobody reads it any more
                    while rest:
                        rest = rest[os.write(_STDERR, rest) :]
    finally:
        os.close(before)
