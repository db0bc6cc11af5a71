"""A map whose next few results are already under way."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_ahead(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    num_threads: int,
    max_waiting: int,
    stop: Callable[[], object] | None = None,
) -> Iterator[Result]:
    """``work`` of each item, in order.

    Args:
        work: what it raises is raised here, in its turn.
        items: asked for as results are taken.
        num_threads: calls of ``work`` at a time.
        max_waiting: results that may wait to be taken, those under way included.
        stop: called at the end, whatever it is: calls of ``work`` that last, and are waited for, may end early.
    """
    with ThreadPoolExecutor(num_threads) as pool:
        running: deque[Future[Result]] = deque()
        try:
            for item in items:
                running.append(pool.submit(work, item))
                if len(running) > max_waiting:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            for future in running:
                future.cancel()
            if stop is not None:
                stop()
