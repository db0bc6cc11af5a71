"""What is gathered into files: time injected, no Ray."""

from __future__ import annotations

import math
import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipeline.annotate import graph, pool
from pipeline.annotate.config import ResourcesConfig
from pipeline.annotate.graph import Block, Gatherer, _read_tasks, rows_per_fetch
from pipeline.annotate.manifest.rules import ReadUnit
from pipeline.annotate.pending.antijoin import Pending
from pipeline.messages.examples import Examples
from pipeline.model.settings import TestSettings
from pipeline.storage.uris import Uri


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def add(gathered: Gatherer, names: str, num_bytes: int = 1) -> None:
    for name in names:
        gathered.add(Block(name, num_bytes))


def take(gathered: Gatherer, everything: bool = False) -> str:
    return "".join(block.ref for block in gathered.take(everything))


def test_a_file_is_due_when_it_is_full() -> None:
    gathered = Gatherer(2, 100, 100.0, Clock())
    add(gathered, "a")
    assert take(gathered) == ""
    add(gathered, "bc")
    assert take(gathered) == "ab"
    assert take(gathered) == ""
    assert gathered.num_bytes == 1


def test_a_file_is_due_when_its_blocks_take_much_memory() -> None:
    gathered = Gatherer(1000, 100, 100.0, Clock())
    add(gathered, "abc", num_bytes=40)
    assert take(gathered) == "ab"
    add(gathered, "d", num_bytes=1000)
    add(gathered, "e")
    assert [take(gathered) for _ in range(3)] == ["c", "d", ""]


def test_a_file_is_due_when_its_oldest_rows_have_waited() -> None:
    clock = Clock()
    gathered = Gatherer(1000, 100, 120.0, clock)
    add(gathered, "a")
    clock.now = 100.0
    add(gathered, "b")
    clock.now = 119.9
    assert take(gathered) == ""
    clock.now = 120.0
    assert take(gathered) == "ab"
    clock.now = 1000.0
    assert take(gathered) == ""  # nothing waits, nothing is old


def test_everything_is_due_at_the_end() -> None:
    gathered = Gatherer(2, 100, 100.0, Clock())
    add(gathered, "abc")
    assert [take(gathered, everything=True) for _ in range(3)] == ["ab", "c", ""]


@pytest.mark.parametrize(
    ("num_pending", "rows_per_block", "cpus", "rows"),
    [
        pytest.param(10**9, 64, 16, 768, id="many"),
        pytest.param(10**9, 40, 16, 760, id="whole blocks"),
        pytest.param(10**9, 64, 0, 768, id="no CPU yet"),
        pytest.param(6400, 64, 16, 64, id="several tasks for each CPU"),
        pytest.param(6400, 64, 2, 768, id="few CPUs"),
        pytest.param(1600, 16, 16, 16, id="some tasks"),
        pytest.param(1, 64, 2, 64, id="one image"),
    ],
)
def test_rows_of_a_fetch_task(num_pending: int, rows_per_block: int, cpus: float, rows: int) -> None:
    assert rows_per_fetch(num_pending, rows_per_block, cpus) == rows


@pytest.mark.parametrize("seed", range(20))
def test_nothing_is_lost_doubled_or_kept_too_long(seed: int) -> None:
    rng, clock = random.Random(seed), Clock()
    gathered = Gatherer(6, 100, 10.0, clock)
    came: dict[int, tuple[float, Block]] = {}
    written: list[int] = []

    def look(everything: bool = False) -> None:
        while file := gathered.take(everything):
            assert len(file) <= 6
            assert len(file) == 1 or sum(block.num_bytes for block in file) <= 100
            written.extend(block.ref for block in file)
        waiting = [ref for ref in came if ref not in written]
        assert all(clock.now - came[ref][0] < 10.0 for ref in waiting)
        assert len(waiting) < 6
        assert sum(came[ref][1].num_bytes for ref in waiting) == gathered.num_bytes < 100

    for ref in range(300):
        clock.now += rng.choice([0.0, 0.1, 3.0])
        came[ref] = (clock.now, Block(ref, rng.randint(0, 60)))
        gathered.add(came[ref][1])
        look()
    look(everything=True)
    assert written == list(came)  # in order: a retry writes the same files


@pytest.mark.parametrize(
    ("resources", "settings"),
    [
        pytest.param({"CPU": 2.0}, {}, id="two cores, a replica on one of them"),
        pytest.param({"CPU": 2.0}, {"fetch_cpus_per_task": 0.5}, id="two fetch tasks beside it"),
        pytest.param({"CPU": 16.0, "GPU": 1.0}, {}, id="a GPU"),
        pytest.param({"CPU": 64.0, "GPU": 8.0}, {"actors": 8}, id="eight GPUs"),
        pytest.param({"CPU": 1.0, "GPU": 1.0}, {}, id="one core beside a GPU"),
    ],
)
def test_files_are_written_where_fetching_fills_the_cluster(
    monkeypatch: pytest.MonkeyPatch, resources: dict[str, float], settings: dict[str, Any]
) -> None:
    monkeypatch.setattr(pool, "node_resources", lambda: [resources])
    chosen = pool.choose_pool(ResourcesConfig(**settings))
    free = resources["CPU"] - chosen.min_actors * chosen.cpus
    free -= math.floor(free / chosen.fetch_cpus) * chosen.fetch_cpus
    assert free >= chosen.max_writes * pool.LIGHT_CPUS


@pytest.mark.parametrize(
    ("nodes", "settings", "mib"),
    [
        pytest.param([(2, 1, 100)], {}, 6, id="a small store"),
        pytest.param([(2, 1, 75)], {}, 5, id="the smallest"),
        pytest.param([(2, 1, 1000)], {"object_store_limit_bytes": 100 << 20}, 8, id="a part of a large one"),
        pytest.param([(16, 8, 64 << 10)], {}, 552, id="many GPUs"),
        pytest.param([(0, 8, 4 << 10), (64, 0, 64 << 10)], {}, 86, id="GPUs, and CPUs on a node of their own"),
        pytest.param([(2, 0, 1 << 10)], {"cpus_per_actor": 0.0}, 69, id="a replica that reserves nothing"),
    ],
)
def test_blocks_leave_room_in_every_store(
    monkeypatch: pytest.MonkeyPatch, nodes: list[tuple[int, int, int]], settings: dict[str, Any], mib: int
) -> None:
    resources = [{"CPU": c, "GPU": g, "object_store_memory": float(m << 20)} for c, g, m in nodes]
    for module in (graph, pool):
        monkeypatch.setattr(module, "node_resources", lambda: resources)
    config: Any = SimpleNamespace(resources=ResourcesConfig(**settings), model=SimpleNamespace(batch_size=16))
    chosen = pool.choose_pool(config.resources)
    found = graph.bytes_per_block(config, chosen, 0)
    assert found >> 20 == mib
    warning = graph.warn_of_store(config, TestSettings(short_side=800, long_side=1333), chosen, 0)
    assert bool(warning) == (mib < 49)  # 16 pictures as the model takes them
    assert graph.bytes_per_block(config, chosen, 40 << 20) < found or "object_store_limit_bytes" in settings


def test_a_row_group_is_read_by_one_task_and_small_ones_come_together() -> None:
    sizes = [10_000, *[500] * 20, *[100_000] * 4, 3]
    rng = np.random.default_rng(0)
    masks = [np.ones(10_000, bool), *(rng.random(500) < 0.9 for _ in range(20)), *(np.arange(100_000) < 7,) * 4]
    masks.append(np.array([False, True, False]))
    units = [ReadUnit(Uri("/m.parquet"), group, size) for group, size in enumerate(sizes)]
    packed = tuple((unit, np.packbits(mask)) for unit, mask in zip(units, masks, strict=True))
    tasks = list(_read_tasks(Pending(packed, 0, 0, 0, Examples(), Examples())))
    groups = [task["row_group"].to_pylist() for task in tasks]
    assert [group for task in groups for group in task] == list(range(len(sizes)))
    assert groups[0] == [0]  # large enough, whatever comes behind it
    wanted = [sum(int(masks[group].sum()) for group in task) for task in groups]
    assert all(4096 <= rows < 4096 + 500 for rows in wanted[1:3])
    # Where little is wanted of much, a task looks at not much more than it would read elsewhere.
    assert all(sum(sizes[group] for group in task) < 64 * 4096 + 100_000 for task in groups)
    for task in tasks:
        for group, bits, num_rows in zip(
            *(task[name].to_pylist() for name in ("row_group", "wanted", "num_rows")), strict=True
        ):
            assert np.array_equal(np.unpackbits(np.frombuffer(bits, np.uint8), count=num_rows), masks[group])
