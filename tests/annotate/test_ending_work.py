"""How a round of the annotate job ends: what is ready is written. Scripted stages and writers, no Ray."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ObjectLostError, RayActorError, RayTaskError

from pipeline.annotate import graph, rounds
from pipeline.annotate import run as job
from pipeline.annotate.config import ResourcesConfig
from pipeline.annotate.graph import Block, RunParts
from pipeline.annotate.pool import Pool
from pipeline.annotate.progress import Snapshot
from pipeline.annotate.replica_time import Used
from pipeline.annotate.stages.stage import StageCounts
from pipeline.annotations.data_file import Counts
from pipeline.annotations.run_json import ImageCounts, RunJson, RunState, Seconds, ThisRun
from pipeline.cluster.address import ClusterError
from pipeline.storage.lock.lease import LockLost
from pipeline.storage.uris import Uri


class Stages:
    """Gives blocks, and then an error."""

    def __init__(self, blocks: list[str], error: BaseException | None) -> None:
        self._coming: list[Block | BaseException] = [Block(name, 1) for name in blocks]
        self._coming += [] if error is None else [error]
        self.ended = False
        self.stops = 0

    def take(self, timeout_s: float) -> Block | None:
        if not self._coming:
            self.ended = True
            return None
        block = self._coming.pop(0)
        if isinstance(block, BaseException):
            raise block
        return block

    def stop(self) -> None:
        self.stops += 1


class Store:
    """Stands for Ray where files are written: what it is given is done at once."""

    def __init__(self, broken: dict[str, Exception]) -> None:
        self.broken = broken
        self.files: list[tuple[str, ...]] = []

    def remote(self, work: Any) -> Any:
        writer = SimpleNamespace(write=SimpleNamespace(remote=lambda *blocks: blocks))
        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda *stages: writer))

    def wait(self, refs: list[Any], num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
        return refs[:num_returns], refs[num_returns:]

    def get(self, blocks: tuple[str, ...], timeout: float | None = None) -> Any:
        for block in blocks:
            if block in self.broken:
                error = self.broken[block]
                raise RayTaskError("write", "", error, proctitle="write", pid=1, ip="here")
        self.files.append(blocks)
        return SimpleNamespace(name="file", num_rows=4 * len(blocks))


class Lock:
    lost: Exception | None = None

    def check(self) -> None:
        if self.lost is not None:
            raise self.lost


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[rounds.Rounds, Store]]:
    def prepare(
        blocks: str, error: BaseException | None, broken: dict[str, Exception] | None = None, lost: bool = False
    ) -> tuple[rounds.Rounds, Store]:
        store, lock = Store(broken or {}), Lock()
        stages = Stages(list(blocks), error)
        if lost:
            lock.lost = LockLost("taken by another run")

        @contextlib.contextmanager
        def silent(*_: Any) -> Iterator[Callable[[], str]]:
            yield lambda: ""

        monkeypatch.setattr(graph, "ray", store)
        monkeypatch.setattr(graph, "node_resources", lambda: [{"object_store_memory": 800.0}, {"CPU": 1.0}])
        monkeypatch.setattr(graph, "Encode", lambda *_: None)
        monkeypatch.setattr(graph, "Write", lambda *_: None)
        monkeypatch.setattr(rounds, "build", lambda *_: None)
        monkeypatch.setattr(rounds, "Running", lambda _: stages)
        monkeypatch.setattr(rounds.Rounds, "_watched", silent)
        monkeypatch.setattr(rounds, "_gone_nodes", set)
        anything: Any = None
        return rounds.Rounds(anything, lock, started=0.0), store  # type: ignore[arg-type]

    return prepare


def parts(rows_per_file: int) -> Any:
    output = SimpleNamespace(compression_level=1, images_per_file=rows_per_file, write_interval_s=1000.0)
    resources = SimpleNamespace(object_store_limit_bytes=None)
    return SimpleNamespace(
        config=SimpleNamespace(output=output, images_per_block=4, resources=resources),
        **dict.fromkeys(("monitor", "store", "identity", "fence", "schema", "categories")),
        pool=SimpleNamespace(max_writes=8),
    )


def begin(run: rounds.Rounds, rows_per_file: int = 8) -> None:
    run.parts = parts(rows_per_file)
    with contextlib.ExitStack() as stack:
        run.run(SimpleNamespace(num_pending=100), stack, SimpleNamespace())  # type: ignore[arg-type]


def test_what_waits_and_is_written_is_bounded_in_bytes(work: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sixteenth of a node's object store for a file, an eighth of all of it for those together."""
    _, store = work("", None)
    writes = graph.Writes(parts(rows_per_file=1000), SimpleNamespace())  # type: ignore[arg-type]
    monkeypatch.setattr(store, "wait", lambda *_, **__: ([], []))  # none is done
    for name in "abcd":
        assert not writes.full
        writes.add(Block(name, 30))
        writes.go_on()
    assert writes.full
    assert writes.num_open == 3  # two blocks are too much for a file; the last one waits


@pytest.mark.parametrize("error", [ValueError("a stage broke"), KeyboardInterrupt()])
def test_an_error_of_a_stage_costs_no_finished_row(work: Any, error: BaseException) -> None:
    run, store = work("abcde", error)
    with pytest.raises(type(error)) as raised:
        begin(run, rows_per_file=1000)
    assert raised.value is error
    assert store.files == [tuple("abcde")]
    assert run.written == 20


def test_a_file_that_cannot_be_written_costs_no_other(work: Any) -> None:
    run, store = work("abcdefg", None, broken={"c": OSError(28, "No space left on device")})
    with pytest.raises(OSError, match="No space left"):
        begin(run)
    assert store.files == [("a", "b"), ("e", "f"), ("g",)]
    assert run.written == 20  # those that were done together with the one that failed as well


def test_a_disk_that_is_full_ends_the_run(work: Any) -> None:
    full = OSError(28, "No space left on device")
    run, store = work("abcdefg", ValueError("a stage broke"), broken=dict.fromkeys("abcdefg", full))
    with pytest.raises(OSError, match="No space left"):
        begin(run)
    assert store.files == []


def test_nothing_is_written_without_the_lock(work: Any) -> None:
    run, store = work("abc", None, lost=True)
    with pytest.raises(LockLost):
        begin(run, rows_per_file=1000)
    assert store.files == []


def test_lost_blocks_are_left_to_the_audit(work: Any) -> None:
    run, store = work("abcd", None, broken={"b": ObjectLostError("00" * 28, "here", "here")})
    begin(run)
    assert store.files == [("c", "d")]
    assert run.written == 8


class Output:
    """An output that an earlier run finished with failed images."""

    def __init__(self, uri: Uri, at_strip: BaseException | None = None) -> None:
        self.uri, self._at_strip = uri, at_strip

    @property
    def counts(self) -> Counts:
        return Counts(annotated=8, failed=2)

    def files(self) -> Any:
        return self

    def in_the_way(self, *_: Any) -> dict[Any, Any]:
        return {}

    def make_way(self, *_: Any) -> int:
        return 0

    def strip_failed(self, fence: Any) -> int:
        if self._at_strip is not None:
            raise self._at_strip
        return 2


def executed(
    monkeypatch: pytest.MonkeyPatch, store: Output, retry_failed: bool, work: Callable[..., None]
) -> Callable[[], RunJson]:
    """The job from where Ray is connected on, without Ray."""
    monkeypatch.setattr(job._Run, "_new_report", lambda *_: RunJson(run_id="second", state=RunState.RUNNING))
    monkeypatch.setattr(
        job._Run, "pending", lambda *_: SimpleNamespace(num_rows=10, num_done=8, num_pending=2, num_to_do=2)
    )
    monkeypatch.setattr(job._Run, "_annotate_all", work)
    RunJson(run_id="first", state=RunState.FINISHED, images=ImageCounts(10, 8, 2)).write(store.uri)
    anything: Any = None
    run = job._Run(anything, anything, anything, store, anything, lambda: None, "second", anything)  # type: ignore[arg-type]
    started: Any = SimpleNamespace(cluster={}, figures=lambda: ThisRun(), changes=dict)
    redo = run.to_redo(store.files(), anything, retry_failed)
    return lambda: run.execute(started, redo, None if redo else run.pending(store.files()))


@pytest.mark.parametrize(("error", "state"), [(KeyboardInterrupt(), "stopped"), (OSError("no"), "failed")])
def test_an_output_whose_failed_rows_are_removed_is_not_called_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, state: str
) -> None:
    store = Output(Uri(str(tmp_path)), at_strip=error)
    with pytest.raises(type(error)):
        executed(monkeypatch, store, True, lambda *_: None)()
    report = RunJson.read(store.uri)
    assert report is not None
    assert (report.run_id, report.state, report.images) == ("second", state, ImageCounts())


@pytest.mark.parametrize("closed", [False, True])
def test_a_signal_after_the_last_row_finds_the_run_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closed: bool
) -> None:
    store = Output(Uri(str(tmp_path)))

    def work(run: Any, parts: Any, pending: Any, report: RunJson, stack: contextlib.ExitStack) -> None:
        stack.callback(lambda: seen.append(RunJson.read(store.uri)))
        if closed:
            report.state, report.images = RunState.FINISHED, ImageCounts(10, 9, 1)
        raise KeyboardInterrupt

    seen: list[RunJson | None] = []
    with pytest.raises(KeyboardInterrupt):
        executed(monkeypatch, store, False, work)()
    # Written before the work is ended, which takes seconds in which a second signal may come.
    (report,) = seen
    assert report is not None
    assert (report.state, report.images.manifest) == (("finished", 10) if closed else ("stopped", 0))


class Late(Stages):
    """Gives the last block to those only who wait for it."""

    def take(self, timeout_s: float) -> Block | None:
        return None if len(self._coming) == 1 and not timeout_s else super().take(timeout_s)


def test_rows_on_their_way_are_written_when_a_run_is_stopped(work: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run, store = work("", None)
    stages = Late(list("abc"), None)

    @contextlib.contextmanager
    def failing(*_: Any) -> Iterator[Callable[[], str]]:
        yield lambda: "all fail"

    monkeypatch.setattr(rounds, "Running", lambda _: stages)
    monkeypatch.setattr(rounds.Rounds, "_watched", failing)
    begin(run, rows_per_file=1000)
    assert store.files == [tuple("abc")]


@pytest.mark.parametrize(
    ("columns", "shown"), [(0, "0123456789"), (1, "…"), (5, "012…"), (10, "01234567…"), (11, "0123456789")]
)
def test_a_line_of_progress_fits_the_terminal(monkeypatch: pytest.MonkeyPatch, columns: int, shown: str) -> None:
    """One that wraps leaves its first part behind: ``\\r`` goes to the start of the last line of the screen."""
    monkeypatch.setattr(rounds.sys.stderr, "fileno", lambda: 2)
    monkeypatch.setattr(rounds.os, "get_terminal_size", lambda _: os.terminal_size((columns, 24)))
    assert rounds._fitted("0123456789") == shown


class HeldUp(Stages):
    """Gives its last block never: it is with a replica whose node has gone."""

    def take(self, timeout_s: float) -> Block | None:
        return super().take(timeout_s) if len(self._coming) > 1 else None


class Shrunk:
    """Sees at once that a round waits for nodes, when asked for the tenth time."""

    asked = 0

    @property
    def for_long(self) -> bool:
        self.asked += 1
        return self.asked > 10


def test_a_round_whose_last_blocks_went_with_a_node_ends(work: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run, store = work("", None)
    stages = HeldUp(list("abc"), None)
    monkeypatch.setattr(rounds, "_Shrunk", Shrunk)
    monkeypatch.setattr(rounds, "Running", lambda _: stages)
    begin(run, rows_per_file=1000)
    assert store.files == [tuple("ab")]
    assert stages.stops == 2  # one is that of all work at the end
    assert not stages.ended


def moment(ready: int = 2, starting: int = 2, busy: float = 1.0, **counts: Any) -> Snapshot:
    used = {"GPU": Used(replicas=Seconds(busy=busy))}
    return Snapshot(StageCounts(**counts), 1.0, starting, ready, used)


@pytest.mark.parametrize(
    ("gone", "then", "waits"),
    [
        pytest.param({"now"}, moment(), True, id="replicas are there, and nothing moves"),
        pytest.param(set(), moment(), False, id="no node went: it is only slow"),
        pytest.param({"now"}, moment(busy=2.0), False, id="one is at work"),
        pytest.param({"now"}, moment(decoded=1), False, id="images are fetched"),
        pytest.param({"now"}, moment(written=1), False, id="a file was written"),
        pytest.param({"now"}, moment(starting=3), False, id="one loads the model"),
        pytest.param({"now"}, moment(ready=0, starting=0), False, id="none is there to begin anew"),
    ],
)
def test_a_round_waits_for_nodes_where_nothing_moves(
    monkeypatch: pytest.MonkeyPatch, gone: set[str], then: Snapshot, waits: bool
) -> None:
    now, nodes = 1000.0, {"long ago"}
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(rounds, "_gone_nodes", lambda: nodes)
    shrunk = rounds._Shrunk()
    nodes = nodes | gone
    shrunk.see(moment())
    assert not shrunk.for_long
    now += rounds._HELD_UP_S + 1
    shrunk.see(then)
    assert shrunk.for_long == waits


def test_files_whose_blocks_went_with_a_node_do_not_hold_up_a_round_that_ends(
    work: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would be written one day, beside those of the next round: so who writes them is ended."""
    run, store = work("", None)
    killed: list[Any] = []
    monkeypatch.setattr(rounds, "_SAVE_S", 0.2)
    monkeypatch.setattr(rounds, "_Shrunk", Shrunk)
    monkeypatch.setattr(rounds, "Running", lambda _: HeldUp(list("abcde"), None))

    def wait(refs: list[Any], num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
        done = [ref for ref in refs if ref != ("a", "b")]
        return done, [ref for ref in refs if ref not in done]

    get = store.get

    def of_the_killed(blocks: tuple[str, ...], timeout: float | None = None) -> Any:
        if blocks == ("a", "b"):
            assert killed
            raise RayActorError
        return get(blocks)

    monkeypatch.setattr(store, "wait", wait)
    monkeypatch.setattr(store, "get", of_the_killed)
    monkeypatch.setattr(store, "kill", killed.append, raising=False)
    begin(run, rows_per_file=8)
    assert store.files == [("c", "d")]
    assert len(killed) == 1
    assert run.written == 8


def test_a_cluster_that_grew_is_told_of(work: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run, _ = work("", None)
    clusters = iter([{"nodes": 1}, {"nodes": 3}])
    monkeypatch.setattr(rounds, "describe_cluster", lambda: next(clusters))
    run.cluster = {"nodes": 1}
    assert run.changes() == {}
    assert run.changes() == {"at_end": {"nodes": 3}}


@pytest.mark.parametrize("fits", [True, False])
def test_another_round_has_the_replicas_that_there_is_room_for(
    work: Any, monkeypatch: pytest.MonkeyPatch, fits: bool
) -> None:
    run, _ = work("a", None)
    asked: list[ResourcesConfig] = []
    again = Pool(1, 1, 1.0, 0.0, 0.99, 1)

    def choose(config: ResourcesConfig) -> Pool:
        asked.append(config)
        if config.actors and not fits:
            raise ClusterError("no room for 3")
        return again

    monkeypatch.setattr(rounds, "choose_pool", choose)
    parts: Any = RunParts(
        **{part.name: None for part in fields(RunParts) if part.name not in ("config", "pool")},
        config=SimpleNamespace(resources=ResourcesConfig(actors=3)),
        pool=Pool(3, 3, 1.0, 0.0, 0.99, 3),
    )
    run.parts = parts
    run._choose_again()
    # Where all GPUs are gone, the model does not move to CPUs.
    wanted = [ResourcesConfig(actors=3, gpus_per_actor=1.0), ResourcesConfig(gpus_per_actor=1.0)]
    assert asked == wanted[: 1 if fits else 2]
    assert run.parts == replace(parts, pool=again)
