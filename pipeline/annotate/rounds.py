"""The rounds of a run: what Ray does of it. What a run can say without Ray is said before this is imported."""

from __future__ import annotations

import functools
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
from pipeline.annotate.graph import Running, RunParts, Writes, build, warn_of_store
from pipeline.annotate.manifest.open import Manifest
from pipeline.annotate.metrics import RunMetrics
from pipeline.annotate.monitor import TELL_AFTER_S, start_monitor
from pipeline.annotate.pending.antijoin import Pending
from pipeline.annotate.pool import choose_pool, gpus_waited_for
from pipeline.annotate.prepare import ChosenModel
from pipeline.annotate.progress import FailureWatch, Progress, Snapshot
from pipeline.annotate.stages.stage import FIRST_FAILED
from pipeline.annotations.data_file import Identity
from pipeline.annotations.ledger import OutputStore
from pipeline.annotations.overview_text import printable
from pipeline.annotations.run_json import ThisRun
from pipeline.cluster.address import ClusterError
from pipeline.cluster.cause import cause_of
from pipeline.cluster.connect import USES_RAY, connect, describe_cluster
from pipeline.cluster.shared import check_shared
from pipeline.cluster.signals import deferred
from pipeline.messages.counts import counted
from pipeline.messages.timing import REPLACES_LINE
from pipeline.storage.lock.lease import LockLost, OutputLock

logger = logging.getLogger(__name__)

# How often the driver looks whether rows have waited long enough, and whether it is to stop.
_POLL_S = 0.5
_SNAPSHOT_TIMEOUT_S = 5.0
# Workers tell what they did a little later; those of a monitor whose process was killed do not do so again.
_LAST_COUNTS_S = 4 * TELL_AFTER_S
# Rows that have come out of the last stage may be on their way to the driver when a run is stopped.
_ARRIVAL_S = 1.0
# What is ready when a run ends early is written, unless the same cause forbids that.
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
    identity: Identity,
    lock: OutputLock,
    started: float,
) -> Iterator[Rounds]:
    """Ray for the rounds of a run.

    Args:
        started: when the run began, on the monotonic clock: the start of Ray is part of its time.

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
        if small_store := warn_of_store(config, model.settings, pool, checkpoint.num_bytes):
            logger.warning("%s", small_store)
        parts = RunParts(
            config=config,
            manifest=manifest,
            settings=model.settings,
            categories=checkpoint.categories,
            checkpoint=ray.put(checkpoint),
            checkpoint_bytes=checkpoint.num_bytes,
            schema=schema,
            identity=identity,
            fence=lock.fence(),
            monitor=start_monitor(),
            pool=pool,
        )
        del checkpoint
        rounds = Rounds(parts, lock, started, describe_cluster())
        try:
            yield rounds
        finally:
            rounds.metrics.end(rounds.progress(), rounds.todo - rounds.written)
            with suppress(RayError):  # of a cluster that is gone
                ray.get(parts.monitor.end.remote(), timeout=_SNAPSHOT_TIMEOUT_S)


@dataclass
class Rounds:
    """The rounds of a run, one after the other.

    Attributes:
        parts: what the graph is built from.
        lock: that the run holds.
        started: when the run began, on the monotonic clock.
        cluster: what they run on, for the report.
        num: of rounds so far.
        todo: images that were pending when the first one began.
        written: images whose rows they wrote.
    """

    parts: RunParts
    lock: OutputLock
    started: float
    cluster: dict[str, Any] = field(default_factory=dict)
    num: int = 0
    todo: int = 0
    written: int = 0

    @functools.cached_property
    def metrics(self) -> RunMetrics:
        """What Prometheus sees of the run."""
        return RunMetrics(self.parts.identity.run_id)

    @functools.cached_property
    def _told(self) -> _Told:
        return _Told(self.parts.config.log_interval_s)

    def progress(self) -> Progress:
        """Where the run is; a Ray that is gone knows nothing of it."""
        snapshot = Snapshot()
        with suppress(RayError):
            snapshot = self._last_snapshot()
        return self._at(snapshot)

    def _at(self, snapshot: Snapshot) -> Progress:
        seconds, batch_size = time.monotonic() - self.started, self.parts.config.model.batch_size
        return Progress(self.todo, snapshot, seconds, self.parts.pool.initial_actors, batch_size)

    def figures(self) -> ThisRun:
        """How fast the run was, for the report."""
        progress = self.progress()
        used, price = progress.so_far.used, self.parts.config.resources.price_per_gpu_hour
        return ThisRun(
            images=self.todo,
            written=self.written,
            rounds=self.num,
            seconds=round(progress.elapsed_s, 3),
            images_per_second=round(self.written / progress.elapsed_s, 3),
            replica_busy_share=round(progress.busy_share, 4),
            batch_fill=round(progress.batch_fill or 0.0, 4),
            time_split_s={name: round(s, 3) for name, s in progress.time_split().items()},
            replica_seconds=used.replicas.rounded(3),
            gpu_seconds=used.gpus.rounded(3),
            by_accelerator={name: used.figures() for name, used in progress.so_far.by_accelerator.items()},
            cost=None if price is None else round(used.gpus.held / 3600 * price, 2),
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

    def run(self, pending: Pending, work: ExitStack, store: OutputStore) -> str:
        """A round; why the run should end early, or "". However it ends, what is ready is written.

        It ends early as well where nodes went and what is left waits for them: another round is for the replicas that
        there is room for.

        Args:
            work: takes what ends the work that is still going on then.
            store: takes the rows.

        Raises:
            KeyboardInterrupt: a signal ended it early.
        """
        reason = ""
        if self.num > 1:
            self._choose_again()
        shrunk = _Shrunk()
        with deferred() as stopping, self._watched(shrunk) as failing:
            running = Running(build(self.parts, pending))
            work.callback(running.stop)
            writes = Writes(self.parts, store)
            try:
                while not (running.ended or stopping() or (reason := failing()) or shrunk.for_long):
                    if writes.full:
                        writes.wait(_POLL_S)
                    elif (block := running.take(_POLL_S)) is not None:
                        writes.add(block)
                    writes.go_on()
                    self.lock.check()
                # Blocks that are lost are made again, or given up, when Ray Data has ended; not so before.
                self._write_rest(running, writes, math.inf if running.ended else _SAVE_S)
                if shrunk.for_long:
                    running.stop()  # its replicas make room for those of another round
                writes.give_up()
            except (KeyboardInterrupt, Exception):
                self._save_rest(running, writes)
                raise
            finally:
                self.written += writes.num_written
        return reason

    def _choose_again(self) -> None:
        """The replicas that there is room for now, of the kind that there were; one is enough to go on with."""
        parts = self.parts
        wanted = parts.config.resources.model_copy(update={"gpus_per_actor": parts.pool.gpus})
        some = wanted.model_copy(update=dict.fromkeys(("actors", "min_actors", "max_actors")))
        with gpus_waited_for(some):
            try:
                pool = choose_pool(wanted)
            except ClusterError:
                pool = choose_pool(some)
        self.parts = replace(parts, pool=pool)

    @contextmanager
    def _watched(self, shrunk: _Shrunk) -> Iterator[Callable[[], str]]:
        """People are told how the run does, and its metrics are set. It is seen whether it waits for nodes that went.

        Gives a function that says why it is not worth going on, or "".
        """
        stop = threading.Event()
        failures = FailureWatch(self.parts.config.output.stop)
        reason = ""

        def loop() -> None:
            nonlocal reason
            while not stop.wait(1.0):
                try:
                    snapshot: Snapshot = ray.get(self.parts.monitor.snapshot.remote(), timeout=_SNAPSHOT_TIMEOUT_S)
                except RayError:  # of a keeper that is being started anew, whose node is gone, or that is slow
                    continue
                reason = reason or failures.see(snapshot.counts)
                shrunk.see(snapshot)
                progress = self._at(snapshot)
                self.metrics.set(progress)
                self._told.tell(progress)

        thread = threading.Thread(target=loop, name=f"{USES_RAY}progress", daemon=True)
        thread.start()
        try:
            yield lambda: reason
        finally:
            stop.set()
            thread.join(timeout=5)
            with suppress(RayError):
                self._told.tell(self._at(self._last_snapshot()))  # a short run may have had no other moment
            self._told.end()

    def _write_rest(self, running: Running, writes: Writes, patience_s: float) -> None:
        """Write all that came out and waits, and what is on its way here: it may count as done already.

        Args:
            patience_s: the longest that nothing is written.
        """
        arrived_at = time.monotonic() + _ARRIVAL_S
        while block := running.take(0 if running.ended or time.monotonic() > arrived_at else _POLL_S):
            writes.add(block)
        writes.go_on(everything=True)
        num_written, written_at = writes.num_written, time.monotonic()
        while writes.num_open and time.monotonic() - written_at < patience_s:
            writes.wait(_POLL_S)
            writes.go_on(everything=True)
            self.lock.check()
            if writes.num_written > num_written:
                num_written, written_at = writes.num_written, time.monotonic()

    def _save_rest(self, running: Running, writes: Writes) -> None:
        """The same after an error, which counts more than any that comes now: each of these costs a file at most."""
        give_up_at = time.monotonic() + _SAVE_S
        for _ in range(2 * writes.max_open):
            try:
                self.lock.check()
                self._write_rest(running, writes, give_up_at - time.monotonic())
                return
            except LockLost:
                return
            except Exception as error:
                logger.warning("the run has failed, and some of its last rows are lost: %s", cause_of(error).line())


class _Told:
    """What people are told of a run: a line for each step until the first images are through, and then every so often.
    On a terminal it replaces the one before. The first images that failed are named as they come.

    Args:
        interval_s: between two lines where they do not replace each other.
    """

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._live = sys.stderr.isatty()
        self._said_at, self._said = -math.inf, ""
        self._failed: set[str] = set()

    def tell(self, progress: Progress) -> None:
        """A moment of the run."""
        for failed in progress.so_far.counts.first_failed:
            if failed not in self._failed and len(self._failed) < FIRST_FAILED:
                self._failed.add(failed)
                logger.warning("failed: %s", printable(failed))
        line, interval_s, now = progress.line(), self._interval_s, time.monotonic()
        if self._live:
            self._said = line
            print(f"{REPLACES_LINE}{_fitted(line)}", end="", file=sys.stderr, flush=True)
            return
        if progress.waiting:
            interval_s = 0.0 if line != self._said else max(interval_s, _STILL_WAITING_S)
        if now - self._said_at >= interval_s:
            self._said_at, self._said = now, line
            logger.info(line)

    def end(self) -> None:
        """Nothing more is told: the last line stays."""
        if self._live and self._said:
            print(f"{REPLACES_LINE}{_fitted(self._said)}", file=sys.stderr, flush=True)


class _Shrunk:
    """Whether a round has waited long enough for nodes that went.

    Blocks that were on such a node, or with its replica, wait for another. Replicas that are left hold places for them,
    fetching fills the CPUs on which they could be made again, and files wait for what was made of them: so all comes to
    a stand, though there are CPUs and replicas.

    Attributes:
        for_long: whether it has.
    """

    def __init__(self) -> None:
        self._gone_before = _gone_nodes()
        self._seen: tuple[float, ...] = ()
        self._stands_since = math.inf
        self.for_long = False

    def see(self, snapshot: Snapshot) -> None:
        """A moment of the round. Where replicas are there, none loads the model, and none is at work, it stands."""
        counts, now = snapshot.counts, time.monotonic()
        seen = snapshot.used.replicas.busy, counts.decoded, counts.encoded, counts.written
        if seen != self._seen or not snapshot.ready or snapshot.ready < snapshot.starting:
            self._seen, self._stands_since = seen, now
        elif (
            not self.for_long and now - self._stands_since > _HELD_UP_S and (gone := _gone_nodes() - self._gone_before)
        ):
            logger.warning("images were left with %s that went; others begin them again", counted(len(gone), "node"))
            self.for_long = True


def _gone_nodes() -> set[str]:
    return {node["NodeID"] for node in ray.nodes() if not node["Alive"]}


def _fitted(line: str) -> str:
    """What of a line a terminal shows without wrapping it: only such a one is replaced by the next."""
    columns = 0
    with suppress(OSError):
        columns = os.get_terminal_size(sys.stderr.fileno()).columns
    return line if len(line) < columns or not columns else line[: max(0, columns - 2)] + "…"
