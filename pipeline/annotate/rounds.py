"""The rounds of a run: what Ray does of it. What a run can say without Ray is said before this is imported."""

from __future__ import annotations

import logging
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import ray
from ray.exceptions import RayError

from pipeline.annotate.config import AnnotateConfig
from pipeline.annotate.graph import Running, RunParts, Writes, build
from pipeline.annotate.manifest.open import Manifest
from pipeline.annotate.monitor import TELL_AFTER_S, start_monitor
from pipeline.annotate.pending.antijoin import Pending
from pipeline.annotate.pool import choose_pool, gpus_waited_for
from pipeline.annotate.prepare import ChosenModel
from pipeline.annotate.progress import FailureWatch, Progress, Snapshot
from pipeline.annotations.data_file import Identity
from pipeline.annotations.ledger import OutputStore
from pipeline.annotations.run_json import ThisRun
from pipeline.cluster.cause import cause_of
from pipeline.cluster.connect import USES_RAY, connect, describe_cluster
from pipeline.cluster.shared import check_shared
from pipeline.cluster.signals import deferred
from pipeline.messages.counts import counted
from pipeline.storage.lock.lease import LockLost, OutputLock

logger = logging.getLogger(__name__)

# How often the driver looks whether rows have waited long enough, and whether it is to stop.
_POLL_S = 0.5
_SNAPSHOT_TIMEOUT_S = 5.0
# Workers tell what they did a little later; those of a monitor whose process was killed do not do so again.
_LAST_COUNTS_S = 4 * TELL_AFTER_S
# Rows that have come out of the last stage may be on their way to the driver when a run is stopped.
_ARRIVAL_S = 1.0
# What is ready when a run fails is written, unless the same cause forbids that.
_SAVE_S = 120.0
# While replicas start nothing moves, and one line tells it all.
_STILL_WAITING_S = 60.0
# Nodes may come back; an autoscaler takes minutes for one. Replicas that are idle begin anew in less.
_HELD_UP_S = 60.0


@contextmanager
def connected(
    config: AnnotateConfig,
    model: ChosenModel,
    manifest: Manifest,
    schema: pa.Schema,
    store: OutputStore,
    identity: Identity,
    lock: OutputLock,
) -> Iterator[Rounds]:
    """Ray for the rounds of a run.

    Raises:
        CheckpointError: the weights cannot be used.
        ClusterError: no cluster answers, or it cannot run this.
        NoGpus: it was to wait for GPUs, and none came.
        RayNotStarted: Ray does not start on this machine.
    """
    logger.info("reading the checkpoint, and connecting to Ray")
    checkpoint = model.load()
    with connect(config.resources.ray_address), gpus_waited_for(config.resources):
        check_shared({"output.uri": config.output.uri}, config.manifest.read_by_workers())
        pool = choose_pool(config.resources)
        parts = RunParts(
            config=config,
            manifest=manifest,
            settings=model.settings,
            categories=checkpoint.categories,
            checkpoint=ray.put(checkpoint),
            schema=schema,
            store=store,
            identity=identity,
            fence=lock.fence(),
            monitor=start_monitor(),
            pool=pool,
        )
        del checkpoint
        yield Rounds(parts, lock, describe_cluster())


@dataclass
class Rounds:
    """The rounds of a run, one after the other.

    Attributes:
        parts: what the graph is built from.
        lock: that the run holds.
        cluster: what they run on, for the report.
        started: on the monotonic clock.
        num: of rounds so far.
        written: images whose rows they wrote.
    """

    parts: RunParts
    lock: OutputLock
    cluster: dict[str, Any] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)
    num: int = 0
    written: int = 0

    def figures(self, todo: int) -> ThisRun:
        """How fast the run was, for the report.

        Args:
            todo: images that were pending when it began.
        """
        seconds = time.monotonic() - self.started
        snapshot = Snapshot()
        with suppress(RayError):  # a Ray that is gone knows no figures
            snapshot = self._last_snapshot()
        progress = Progress(todo, snapshot, seconds, self.parts.pool.max_actors)
        return ThisRun(
            images=todo,
            written=self.written,
            rounds=self.num,
            seconds=round(seconds, 3),
            images_per_second=round(self.written / seconds, 3),
            replica_busy_share=round(progress.busy_share, 4),
            time_split_s={name: round(s, 3) for name, s in progress.time_split().items()},
        )

    def changes(self) -> dict[str, Any]:
        """What the cluster is now, under ``at_end``, if that is something else than at the start."""
        with suppress(RayError, ConnectionError):  # of a Ray that is gone
            now = describe_cluster()
            return {"at_end": now} if now != self.cluster else {}
        return {}

    def _last_snapshot(self) -> Snapshot:
        """What the workers did, with what they tell last; less of it where the monitor was started anew."""
        give_up_at = time.monotonic() + _LAST_COUNTS_S
        while True:
            snapshot: Snapshot = ray.get(self.parts.monitor.snapshot.remote(), timeout=_SNAPSHOT_TIMEOUT_S)
            counts = snapshot.counts
            told = min(counts.decoded, counts.segmented, counts.encoded, counts.written)
            if told >= self.written or time.monotonic() > give_up_at:
                return snapshot
            time.sleep(TELL_AFTER_S / 5)

    def run(self, pending: Pending, work: ExitStack) -> str:
        """A round; why the run should end early, or "". However it ends, what is ready is written.

        It ends early as well where nodes went and what is left waits for them: another round is for the replicas that
        there is room for.

        Args:
            work: takes what ends the work that is still going on then.

        Raises:
            KeyboardInterrupt: a signal ended it early.
        """
        reason = ""
        if self.num > 1:
            self._choose_again()
        with deferred() as stopping, _progress(self.parts, pending.num_pending, self.started) as failing:
            running = Running(build(self.parts, pending))
            work.callback(running.stop)
            writes, shrunk = Writes(self.parts), _Shrunk(running)
            try:
                while not (running.ended or stopping() or (reason := failing()) or shrunk.look()):
                    if writes.full:
                        writes.wait(_POLL_S)
                    elif (block := running.take(_POLL_S)) is not None:
                        writes.add(block)
                    writes.go_on()
                    self.lock.check()
                self._write_rest(running, writes)
                if shrunk.for_long:
                    running.stop()  # its replicas make room for those of another round
            except (KeyboardInterrupt, Exception):
                self._save_rest(running, writes)
                raise
            finally:
                self.written += writes.num_written
        return reason

    def _choose_again(self) -> None:
        """The replicas that there is room for now, of the kind that there were."""
        parts = self.parts
        resources = parts.config.resources.model_copy(update={"gpus_per_actor": parts.pool.gpus})
        with gpus_waited_for(resources):
            self.parts = replace(parts, pool=choose_pool(resources))

    def _write_rest(self, running: Running, writes: Writes, give_up_at: float = math.inf) -> None:
        """Write all that came out and waits, and what is on its way here: it may count as done already."""
        arrived_at = time.monotonic() + _ARRIVAL_S
        while block := running.take(0 if running.ended or time.monotonic() > arrived_at else _POLL_S):
            writes.add(block)
        writes.go_on(everything=True)
        while writes.num_open and time.monotonic() < give_up_at:
            writes.wait(_POLL_S)
            writes.go_on(everything=True)
            self.lock.check()

    def _save_rest(self, running: Running, writes: Writes) -> None:
        """The same after an error, which counts more than any that comes now: each of these costs a file at most."""
        give_up_at = time.monotonic() + _SAVE_S
        for _ in range(2 * writes.max_open):
            try:
                self.lock.check()
                self._write_rest(running, writes, give_up_at)
                return
            except LockLost:
                return
            except Exception as error:
                logger.warning("the run has failed, and some of its last rows are lost: %s", cause_of(error).line())


class _Shrunk:
    """Whether a round has waited long enough for nodes that went.

    Args:
        running: the round.

    Attributes:
        for_long: whether it has.
    """

    def __init__(self, running: Running) -> None:
        self._running = running
        self._gone_before = _gone_nodes()
        self._held_up_since: float | None = None
        self.for_long = False

    def look(self) -> bool:
        """See how it is now; ``for_long``, which stays."""
        now = time.monotonic()
        if not self._running.held_up:
            self._held_up_since = None
        elif self._held_up_since is None:
            self._held_up_since = now
        elif now - self._held_up_since > _HELD_UP_S and (gone := _gone_nodes() - self._gone_before):
            logger.warning("images were left with %s that went; others begin them again", counted(len(gone), "node"))
            self.for_long = True
        return self.for_long


def _gone_nodes() -> set[str]:
    return {node["NodeID"] for node in ray.nodes() if not node["Alive"]}


def _fitted(line: str) -> str:
    """What of a line a terminal shows without wrapping it: only such a one is replaced by the next."""
    columns = 0
    with suppress(OSError):
        columns = os.get_terminal_size(sys.stderr.fileno()).columns
    return line if len(line) < columns or not columns else line[: max(0, columns - 2)] + "…"


@contextmanager
def _progress(parts: RunParts, total: int, started: float) -> Iterator[Callable[[], str]]:
    """A line for each step until the first images are through, and then every so often; on a terminal it replaces the
    one before.

    Gives a function that says why it is not worth going on, or "".
    """
    live = sys.stderr.isatty()
    stop = threading.Event()
    failures = FailureWatch(parts.config.output.stop)
    reason = ""

    def loop() -> None:
        nonlocal reason
        said_at, said = -math.inf, ""
        while not stop.wait(1.0):
            try:
                snapshot: Snapshot = ray.get(parts.monitor.snapshot.remote(), timeout=_SNAPSHOT_TIMEOUT_S)
            except RayError:  # of a keeper that is being started anew, whose node is gone, or that is slow
                continue
            reason = reason or failures.see(snapshot.counts)
            now = time.monotonic()
            progress = Progress(total, snapshot, now - started, parts.pool.max_actors)
            line, interval_s = progress.line(), parts.config.log_interval_s
            if live:
                print(f"\r\033[K{_fitted(line)}", end="", file=sys.stderr, flush=True)
                continue
            if progress.waiting:
                interval_s = 0.0 if line != said else max(interval_s, _STILL_WAITING_S)
            if now - said_at >= interval_s:
                said_at, said = now, line
                logger.info(line)

    thread = threading.Thread(target=loop, name=f"{USES_RAY}progress", daemon=True)
    thread.start()
    try:
        yield lambda: reason
    finally:
        stop.set()
        thread.join(timeout=5)
        if live:
            print(file=sys.stderr)
