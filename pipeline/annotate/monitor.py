"""One small actor per run, outside the workers: it counts, and it remembers which images are in flight.

What it counts is for people to watch; a retried task counts twice. The books are closed from the output.

One actor answers a whole cluster, so workers send it few messages. A process adds up what it has to tell, and tells it
with its next `begin`, which is waited for, or when nothing has followed for `TELL_AFTER_S`. A kill takes away the
counts of that time, and word that rows were survived: should they come back, it is with a death to their name, one at
a time. That refuses no row: for that, a death must find it in flight alone, and a row that was survived alone is told
of at once.
"""

from __future__ import annotations

import base64
import logging
import os
import tempfile
import threading
import time
import uuid
from collections.abc import Hashable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.annotate.progress import Snapshot
from pipeline.annotate.replica_time import ReplicaBook, ReplicaClock, ReplicaReport
from pipeline.annotate.stages.guard import InProcessGuard
from pipeline.annotate.stages.stage import StageCounts

logger = logging.getLogger(__name__)

# A replica at work begins its next block sooner, so that nearly all goes with a `begin`; and a process that ends, or is
# ended, when it has nothing to do has told all by then.
TELL_AFTER_S = 0.5
HEARTBEAT_S = 2.0  # of replicas
_LAST_WORDS_S = 20.0
_GOODBYE_S = 2.0
_PROCESS = uuid.uuid4().hex


class Told(NamedTuple):
    """What a process has to tell.

    Attributes:
        counts: what its stages did since it last told.
        ends: stages and rows that were survived.
        replica: how the replica in this process stands.
    """

    counts: StageCounts | None = None
    ends: tuple[tuple[str, Sequence[Hashable]], ...] = ()
    replica: ReplicaReport | None = None


class _Journal:
    """Settled orders in a local file, a line each, so that they outlive the monitor's process.

    Args:
        path: of the file; what is there already stays.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writable = True

    def read(self) -> Iterator[tuple[str, bytes]]:
        """Keys and orders. A last line that was cut off was answered to nobody, and is dropped."""
        with suppress(FileNotFoundError), open(self._path, "r+b") as file:
            length = 0
            for line in file:
                if not line.endswith(b"\n"):
                    file.truncate(length)
                    break
                length += len(line)
                key, order = line.split()
                yield key.decode(), base64.b64decode(order)

    def add(self, key: str, order: bytes) -> None:
        """What is written down survives the process, though not the machine, with which the driver goes as well."""
        if not self._writable:
            return
        try:
            with open(self._path, "ab", buffering=0) as file:
                file.write(b"%s %s\n" % (key.encode(), base64.b64encode(order)))
        except OSError as error:  # a full disk is no reason to end a run that another rare thing would have to hurt
            logger.warning("orders of work are no longer written down, in case this process is killed: %s", error)
            self._writable = False

    def remove(self) -> None:
        """The run is over."""
        self._path.unlink(missing_ok=True)


class RunMonitor:
    """The sum of all counts, and the guard's book-keeping. Each call says by which process it is.

    Args:
        journal: a file for what must be known again should this process be killed; without one it is forgotten.
    """

    def __init__(self, journal: str | None = None) -> None:
        self._guard = InProcessGuard()
        self._journal = None if journal is None else _Journal(Path(journal))
        for key, order in [] if self._journal is None else self._journal.read():
            self._guard.settle(key, order)
        self._counts = StageCounts()
        self._first_segment: float | None = None
        self._replicas = ReplicaBook()

    def hear(self, by: str, told: Told) -> None:
        """Add to the sum, and to the books."""
        if told.replica is not None:
            self._replicas.write_down(told.replica)
        for stage, ids in told.ends:
            self._guard.end(stage, ids, by)
        if told.counts is None:
            return
        self._counts += told.counts
        if self._first_segment is None and told.counts.segment_s:
            self._first_segment = time.monotonic() - told.counts.segment_s

    def begin(self, by: str, told: Told, stage: str, ids: Sequence[Hashable]) -> list[int]:
        """See `pipeline.annotate.stages.guard.Guard`."""
        self.hear(by, told)
        return self._guard.begin(stage, ids, by)

    def retry(self, by: str, told: Told, stage: str, image_id: Hashable) -> None:
        """See `pipeline.annotate.stages.guard.Guard`."""
        self.hear(by, told)
        self._guard.retry(stage, image_id, by)

    def survive(self, by: str, told: Told, stage: str, image_id: Hashable) -> None:
        """See `pipeline.annotate.stages.guard.Guard`."""
        self.hear(by, told)
        self._guard.survive(stage, image_id, by)

    def expire(self, by: str, told: Told, stage: str, ids: Sequence[Hashable], others: Sequence[Hashable]) -> None:
        """See `pipeline.annotate.stages.guard.Guard`."""
        self.hear(by, told)
        self._guard.expire(stage, ids, others, by)

    def has_expired(self, stage: str, image_id: Hashable) -> bool:
        """See `pipeline.annotate.stages.guard.Guard`."""
        return self._guard.has_expired(stage, image_id)

    def settle(self, key: str, order: bytes) -> bytes:
        """See `pipeline.annotate.stages.guard.Guard`."""
        settled = self._guard.settle(key)
        if settled or not order:
            return settled
        if self._journal is not None:
            self._journal.add(key, order)
        return self._guard.settle(key, order)

    def end(self) -> None:
        """Nothing is asked any more."""
        if self._journal is not None:
            self._journal.remove()

    def snapshot(self) -> Snapshot:
        """The sum now, the time since the first model call began, and what the replicas took."""
        elapsed = 0.0 if self._first_segment is None else time.monotonic() - self._first_segment
        return Snapshot(self._counts, elapsed, *self._replicas.counts(), self._replicas.used())


def start_monitor() -> Any:
    """A monitor on the driver's node, where it lives as long as the run does.

    Should its process be killed, another one starts, and the calls that waited go to that one: the progress line begins
    again, and images that kill processes are suffered a little longer. Orders of work it knows from a file in that
    node's folder for temporary files: a task that began by one and was tried again in another would give some rows
    twice, and others not at all.
    """
    journal = os.path.join(tempfile.gettempdir(), f"maskfleet-orders-{uuid.uuid4().hex}")
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": here}
    return ray.remote(RunMonitor).options(**options).remote(journal)


class _Sender:
    """What this process has to tell a monitor, and in which order: shared by all clients in it, and their threads."""

    def __init__(self, monitor: Any) -> None:
        self._monitor = monitor
        self._lock = threading.RLock()  # a replica that is let go may be so in the middle of anything
        self._counts: StageCounts | None = None
        self._ends: list[tuple[str, Sequence[Hashable]]] = []
        self._later: threading.Timer | None = None
        self._replica: ReplicaClock | None = None
        self._told_at = 0.0

    def follow(self, replica: ReplicaClock) -> None:
        """From here on, until it ends."""
        self._replica = replica
        threading.Thread(target=self._heartbeat, args=(replica,), daemon=True).start()

    def add(self, counts: StageCounts | None = None, end: tuple[str, Sequence[Hashable]] | None = None) -> None:
        """To be told soon."""
        with self._lock:
            if counts is not None:
                self._counts = counts if self._counts is None else self._counts + counts
            if end is not None:
                self._ends.append(end)
            if self._later is None:
                self._later = threading.Timer(TELL_AFTER_S, self._tell)
                self._later.daemon = True
                self._later.start()

    def call(self, method: str, *args: Any) -> Any:
        """Tell, and ask something: the reference to the answer. Calls arrive in the order in which they are made."""
        with self._lock:
            return getattr(self._monitor, method).remote(_PROCESS, self._take(), *args)

    def _tell(self) -> None:
        with self._lock, suppress(RayError):  # of a run that is over
            if (told := self._take()) != Told():
                self._monitor.hear.remote(_PROCESS, told)

    def _heartbeat(self, replica: ReplicaClock) -> None:
        while self._replica is replica and not replica.report().ended:
            wait_s = self._told_at + HEARTBEAT_S - time.monotonic()
            if wait_s > 0:
                time.sleep(wait_s)
            else:
                self._tell()

    def _take(self) -> Told:
        if self._later is not None:
            self._later.cancel()
        told = Told(self._counts, tuple(self._ends), None if self._replica is None else self._replica.report())
        self._counts, self._ends, self._later = None, [], None
        self._told_at = time.monotonic()
        return told


_SENDERS: WeakValueDictionary[Any, _Sender] = WeakValueDictionary()
_SENDERS_LOCK = threading.Lock()


def _sender(monitor: Any) -> _Sender:
    """This process' one for that monitor. It lives while a client does, or while there is something to tell."""
    with _SENDERS_LOCK:
        found = _SENDERS.get(monitor)
        if found is None:
            found = _SENDERS[monitor] = _Sender(monitor)
        return found


class MonitorClient:
    """A worker's end of the monitor: the `Guard` of its stage, and its `Report`. Picklable.

    Args:
        monitor: handle of the actor that `start_monitor` started.
    """

    def __init__(self, monitor: Any) -> None:
        self._monitor = monitor
        self._sender = _sender(monitor)

    def __reduce__(self) -> tuple[type[MonitorClient], tuple[Any]]:
        return MonitorClient, (self._monitor,)

    def begin(self, stage: str, ids: Sequence[Hashable]) -> list[int]:
        """See `pipeline.annotate.stages.guard.Guard`; returns when the monitor has written the rows down."""
        deaths: list[int] = ray.get(self._sender.call("begin", stage, ids))
        return deaths

    def retry(self, stage: str, image_id: Hashable) -> None:
        """See `pipeline.annotate.stages.guard.Guard`; returns when the monitor has written the row down."""
        ray.get(self._sender.call("retry", stage, image_id))

    def end(self, stage: str, ids: Sequence[Hashable]) -> None:
        """See `pipeline.annotate.stages.guard.Guard`. Told soon, and before this process begins anything else."""
        self._sender.add(end=(stage, ids))

    def survive(self, stage: str, image_id: Hashable) -> None:
        """See `pipeline.annotate.stages.guard.Guard`; returns when the monitor has written it down."""
        ray.get(self._sender.call("survive", stage, image_id))

    def expire(self, stage: str, ids: Sequence[Hashable], others: Sequence[Hashable]) -> None:
        """See `pipeline.annotate.stages.guard.Guard`. Waited for, but not long: the process has no time left."""
        ray.get(self._sender.call("expire", stage, ids, others), timeout=_LAST_WORDS_S)

    def has_expired(self, stage: str, image_id: Hashable) -> bool:
        """See `pipeline.annotate.stages.guard.Guard`."""
        expired: bool = ray.get(self._monitor.has_expired.remote(stage, image_id))
        return expired

    def settle(self, key: str, order: bytes = b"") -> bytes:
        """See `pipeline.annotate.stages.guard.Guard`."""
        settled: bytes = ray.get(self._monitor.settle.remote(key, order))
        return settled

    def follow(self, replica: ReplicaClock) -> None:
        """Tell how this process' replica stands: now, with all else that is told, and every `HEARTBEAT_S` at least."""
        self._sender.follow(replica)

    def say_goodbye(self) -> None:
        """Tell all that is to be told, for the last time; waited for, but not long."""
        ray.get(self._sender.call("hear"), timeout=_GOODBYE_S)

    def report(self, counts: StageCounts) -> None:
        """Add to the run's counts, soon."""
        self._sender.add(counts)

    def report_now(self, counts: StageCounts) -> None:
        """The same at once, with all that waits to be told: this process may be ended as soon as its result is out."""
        self._sender.add(counts)
        ray.get(self._sender.call("hear"))
