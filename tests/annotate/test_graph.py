"""What is gathered into files: time injected, no Ray."""

from __future__ import annotations

import random

import pytest

from pipeline.annotate.graph import Gatherer


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_file_is_due_when_it_is_full() -> None:
    gathered: Gatherer[str] = Gatherer(8, 100.0, Clock())
    gathered.add("a", 4)
    assert gathered.take() == ([], 0)
    gathered.add("b", 4)
    gathered.add("c", 4)
    assert gathered.take() == (["a", "b"], 8)
    assert gathered.take() == ([], 0)
    assert gathered.num_rows == 4


def test_a_file_is_due_when_its_oldest_rows_have_waited() -> None:
    clock = Clock()
    gathered: Gatherer[str] = Gatherer(1000, 120.0, clock)
    gathered.add("a", 4)
    clock.now = 100.0
    gathered.add("b", 4)
    clock.now = 119.9
    assert gathered.take() == ([], 0)
    clock.now = 120.0
    assert gathered.take() == (["a", "b"], 8)
    clock.now = 1000.0
    assert gathered.take() == ([], 0)  # nothing waits, nothing is old


def test_everything_is_due_at_the_end() -> None:
    gathered: Gatherer[str] = Gatherer(8, 100.0, Clock())
    for name in "abc":
        gathered.add(name, 4)
    assert gathered.take(everything=True) == (["a", "b"], 8)
    assert gathered.take(everything=True) == (["c"], 4)
    assert gathered.take(everything=True) == ([], 0)


@pytest.mark.parametrize("seed", range(20))
def test_nothing_is_lost_doubled_or_kept_too_long(seed: int) -> None:
    rng, clock = random.Random(seed), Clock()
    gathered: Gatherer[int] = Gatherer(50, 10.0, clock)
    came: dict[int, tuple[float, int]] = {}
    written: list[int] = []

    def look(everything: bool = False) -> None:
        while (file := gathered.take(everything))[0]:
            refs, rows = file
            assert rows == sum(came[ref][1] for ref in refs) <= 50
            written.extend(refs)
        waiting = [ref for ref in came if ref not in written and came[ref][1]]
        assert all(clock.now - came[ref][0] < 10.0 for ref in waiting)
        assert sum(came[ref][1] for ref in waiting) == gathered.num_rows < 50

    for ref in range(300):
        clock.now += rng.choice([0.0, 0.1, 3.0])
        came[ref] = (clock.now, rng.randint(0, 20))
        gathered.add(ref, came[ref][1])
        look()
    look(everything=True)
    assert written == [ref for ref in came if came[ref][1]]  # in order: a retry writes the same files
