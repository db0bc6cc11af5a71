"""Log lines of processes that Ray started, said by the driver: a job's terminal shows what its workers do."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

_POLL_S = 0.5


class Listener:
    """An actor that keeps lines, and what the work came to, until the driver takes them."""

    def __init__(self) -> None:
        self._lines: list[tuple[str, int, str]] = []
        self._result: Any = None

    def add(self, logger: str, level: int, message: str) -> None:
        """Keep a line."""
        self._lines.append((logger, level, message))

    def take(self) -> list[tuple[str, int, str]]:
        """The lines since the last call."""
        lines, self._lines = self._lines, []
        return lines

    def end(self, result: Any) -> None:
        """Keep what the work came to: plain values, or this process would import all that they need to be unpickled."""
        self._result = result

    def result(self) -> Any:
        """What `end` was given; ``None`` before."""
        return self._result


class _Teller(logging.Handler):
    def __init__(self, listener: Any, level: int) -> None:
        super().__init__(level)
        self._listener = listener

    def emit(self, record: logging.LogRecord) -> None:
        """Not waited for: calls of one process arrive in order."""
        self._listener.add.remote(record.name, record.levelno, record.getMessage())


def tell(listener: Any, logger: str, level: int = logging.INFO) -> None:
    """In a worker: send what is logged below this logger to the driver, from a level on."""
    logging.getLogger(logger).addHandler(_Teller(listener, level))
    logging.getLogger(logger).setLevel(level)


@contextmanager
def listening() -> Iterator[Any]:
    """A listener whose lines are logged in this process, under the names of their loggers."""
    listener: Any = ray.remote(Listener).options(num_cpus=0).remote()
    over = threading.Event()

    def say() -> None:
        for logger, level, message in ray.get(listener.take.remote()):
            logging.getLogger(logger).log(level, "%s", message)

    def listen() -> None:
        while not over.wait(_POLL_S):
            say()

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    try:
        yield listener
    finally:
        over.set()
        thread.join()
        say()
        ray.kill(listener)
