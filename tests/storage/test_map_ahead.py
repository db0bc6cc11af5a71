from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from pipeline.storage.map_ahead import map_ahead


def test_results_are_in_order_and_few_wait() -> None:
    asked = 0

    def items() -> Iterator[int]:
        nonlocal asked
        for item in range(100):
            asked += 1
            yield item

    for taken, result in enumerate(map_ahead(lambda item: item * 2, items(), 4, 6)):
        assert result == taken * 2
        assert asked <= taken + 7


def test_errors_come_in_their_turn_and_end_the_rest() -> None:
    done: list[int] = []
    go = threading.Event()

    def work(item: int) -> int:
        if item == 1:
            raise KeyError(item)
        if item > 1:
            go.wait(10)
        done.append(item)
        return item

    results = map_ahead(work, range(10), 1, 5)
    assert next(results) == 0
    threading.Timer(0.1, go.set).start()
    with pytest.raises(KeyError):
        next(results)
    assert len(done) <= 2
