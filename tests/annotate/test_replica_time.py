"""What replicas measure of themselves, and what it comes to, deaths included."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.annotate.replica_time import ReplicaBook, ReplicaClock, Used
from pipeline.annotations.run_json import AcceleratorUse, Seconds


class World:
    """Replicas that tell their book how they stand whenever time passes, as long as they live."""

    def __init__(self) -> None:
        self.now = 0.0
        self.book = ReplicaBook(lambda: self.now)
        self.alive: list[ReplicaClock] = []
        self.blocks: list[AbstractContextManager[None]] = []

    def start(self, actor: str, accelerator: str = "NVIDIA H100", gpus: float = 1.0) -> ReplicaClock:
        clock = ReplicaClock(actor, accelerator, gpus, lambda: self.now)
        self.alive.append(clock)
        self.tell()
        return clock

    def load(self, clock: ReplicaClock, seconds: float) -> None:
        self.wait(seconds)
        clock.loaded()
        self.tell()

    def work(self, clock: ReplicaClock, seconds: float, images: int = 64) -> None:
        with clock.working(images):
            self.wait(seconds)
        self.tell()

    def die_at_work(self, clock: ReplicaClock, seconds: float) -> None:
        block = clock.working(64)
        block.__enter__()
        self.blocks.append(block)  # never left
        self.wait(seconds)
        self.alive.remove(clock)

    def let_go(self, clock: ReplicaClock) -> None:
        clock.end()
        self.tell()
        self.alive.remove(clock)

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.tell()

    def tell(self) -> None:
        for clock in self.alive:
            self.book.write_down(clock.report())

    def all(self) -> Used:
        return sum(self.book.used().values(), Used())


def test_a_replica_that_loads_works_and_waits() -> None:
    world = World()
    replica = world.start("a", gpus=0.5)
    assert world.book.counts() == (1, 0)
    world.load(replica, 10)
    assert world.book.counts() == (1, 1)
    world.work(replica, 6)
    world.wait(3)
    world.work(replica, 1, images=36)
    used = world.book.used()["NVIDIA H100"]
    assert used == Used(100, Seconds(20, 7, 13, 0), Seconds(10, 3.5, 6.5, 0), ready_s=10)
    assert used.figures() == AcceleratorUse(100, 20, 10, 36_000)


def test_a_block_at_work_is_busy_before_it_is_finished() -> None:
    world = World()
    replica = world.start("a")
    world.load(replica, 10)
    with replica.working(64):
        world.wait(5)
        assert world.all() == Used(0, Seconds(15, 5, 10, 0), Seconds(15, 5, 10, 0), ready_s=5)


def test_a_death_loses_the_unfinished_block_and_the_loading_of_its_model_again() -> None:
    world = World()
    replica = world.start("a")
    world.load(replica, 10)
    world.work(replica, 6)
    world.die_at_work(replica, 4)
    world.wait(5)  # until Ray has another process; nobody held anything
    replica = world.start("a")
    assert world.book.counts() == (1, 0)
    world.load(replica, 11)
    world.work(replica, 5)
    assert world.all().replicas == Seconds(held=20 + 16, busy=6 + 5, idle=10, lost=4 + 11)
    assert world.all().images == 128
    assert world.book.counts() == (1, 1)


def test_one_that_died_while_it_loaded_was_idle_and_the_next_makes_up_for_it() -> None:
    world = World()
    world.start("a")
    world.wait(7)
    world.alive.clear()
    world.load(world.start("a"), 10)
    assert world.all().replicas == Seconds(held=17, busy=0, idle=7, lost=10)


def test_one_that_is_silent_while_others_are_heard_has_died() -> None:
    world = World()
    dead, other = world.start("a"), world.start("b")
    world.load(dead, 10)
    other.loaded()
    world.die_at_work(dead, 4)
    world.wait(15)
    assert world.book.counts() == (2, 2)  # it may be slow
    world.wait(15)
    assert world.book.counts() == (1, 1)
    assert world.all().replicas == Seconds(held=14 + 44, busy=0, idle=54, lost=4)


def test_one_that_was_let_go_has_lost_nothing_and_is_not_there() -> None:
    world = World()
    first, other = world.start("a"), world.start("b")
    world.load(first, 10)
    other.loaded()
    world.work(first, 5)
    world.let_go(first)
    world.wait(100)
    assert world.book.counts() == (1, 1)
    assert world.all().replicas == Seconds(held=15 + 115, busy=5, idle=125, lost=0)
    world.load(world.start("a"), 10)  # for objects that were lost with a node
    assert world.all().replicas.lost == 0


def test_a_block_that_ends_in_an_error_is_not_finished() -> None:
    world = World()
    replica = world.start("a")
    world.load(replica, 1)
    block = replica.working(64)
    block.__enter__()
    world.wait(3)
    block.__exit__(ValueError, ValueError("broken"), None)
    report = replica.report()
    assert (report.busy_s, report.unfinished_s, report.images) == (3, 3, 0)


def test_devices_are_told_apart_and_cpus_hold_no_gpu() -> None:
    world = World()
    world.start("a")
    cpu = world.start("b", "CPU", gpus=0.0)
    world.load(cpu, 2)
    world.work(cpu, 8)
    used = world.book.used()
    assert set(used) == {"NVIDIA H100", "CPU"}
    assert used["CPU"] == Used(64, Seconds(10, 8, 2, 0), Seconds(), ready_s=8)
    assert used["CPU"].figures() == AcceleratorUse(64, 10, 0, None)


def test_without_replicas() -> None:
    assert (World().book.counts(), World().book.used()) == ((0, 0), {})


STEPS: dict[str, Callable[[World, ReplicaClock, float], None]] = {
    "work": World.work,
    "wait": lambda world, _, seconds: world.wait(seconds),
    "die": lambda world, clock, _: world.alive.remove(clock),
    "die at work": World.die_at_work,
    "let go": lambda world, clock, _: world.let_go(clock),
}


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.sampled_from(["CPU", "H100"]), st.sampled_from(sorted(STEPS)), st.floats(0, 30))
    )
)
@settings(deadline=None, max_examples=60)
def test_whatever_happens_it_adds_up(steps: list[tuple[int, str, str, float]]) -> None:
    """Steps of three actors; one that is not there is started."""
    world = World()
    there: dict[int, ReplicaClock] = {}
    for actor, accelerator, step, seconds in steps:
        clock = there.get(actor)
        if clock is None or clock not in world.alive:
            there[actor] = world.start(str(actor), accelerator, 0.5 if accelerator == "H100" else 0.0)
            world.load(there[actor], seconds)
        else:
            STEPS[step](world, clock, seconds)
        used = world.all()
        for sums in (used.replicas, used.gpus, used.replicas.rounded(3)):
            assert sums.held == pytest.approx(sums.busy + sums.idle + sums.lost, abs=1e-6)
            assert min(sums.held, sums.busy, sums.idle, sums.lost) >= -2e-3
        assert used.replicas.busy <= used.ready_s + 1e-6
        starting, ready = world.book.counts()
        assert 0 <= ready <= starting <= 3
