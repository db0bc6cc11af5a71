"""One small actor per run, outside the workers: it counts, and it remembers which images are in flight.

What it counts is for people to watch; a retried task counts twice. The books are closed from the output.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.annotate.progress import Snapshot
from pipeline.annotate.stages.guard import InProcessGuard
from pipeline.annotate.stages.stage import StageCounts

_LAST_WORDS_S = 20.0


class RunMonitor(InProcessGuard):
    """The sum of all counts, and the guard's book-keeping."""

    def __init__(self) -> None:
        super().__init__()
        self._counts = StageCounts()
        self._first_segment: float | None = None
        self._starting = self._ready = 0

    def start_replica(self) -> None:
        """A replica begins to load the model."""
        self._starting += 1

    def have_replica(self) -> None:
        """A replica has loaded it."""
        self._ready += 1

    def add(self, counts: StageCounts) -> None:
        """Add to the sum."""
        self._counts += counts
        if self._first_segment is None and counts.segment_s:
            self._first_segment = time.monotonic() - counts.segment_s

    def snapshot(self) -> Snapshot:
        """The sum now, and the time since the first model call began."""
        elapsed = 0.0 if self._first_segment is None else time.monotonic() - self._first_segment
        return Snapshot(self._counts, elapsed, self._starting, self._ready)


def start_monitor() -> Any:
    """A monitor on the driver's node, where it lives as long as the run does.

    Should its process be killed, another one starts with empty books, and the calls that waited go to that one:
    the progress line begins again, and images that kill processes are suffered a little longer.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": here}
    return ray.remote(RunMonitor).options(**options).remote()


@dataclass(frozen=True)
class MonitorClient:
    """A worker's end of the monitor: the `Guard` of its stage, and its `Report`. Picklable.

    Attributes:
        monitor: handle of the actor that `start_monitor` started.
    """

    monitor: Any

    def begin(self, stage: str, ids: Sequence[Hashable]) -> list[int]:
        """See `pipeline.annotate.stages.guard.Guard`; returns when the monitor has written the rows down."""
        return ray.get(self.monitor.begin.remote(stage, ids))

    def retry(self, stage: str, image_id: Hashable) -> None:
        """See `pipeline.annotate.stages.guard.Guard`; returns when the monitor has written the row down."""
        ray.get(self.monitor.retry.remote(stage, image_id))

    def end(self, stage: str, ids: Sequence[Hashable]) -> None:
        """See `pipeline.annotate.stages.guard.Guard`. Not waited for: calls of one process arrive in order."""
        self.monitor.end.remote(stage, ids)

    def expire(self, stage: str, ids: Sequence[Hashable], others: Sequence[Hashable]) -> None:
        """See `pipeline.annotate.stages.guard.Guard`. Waited for, but not long: the process has no time left."""
        ray.get(self.monitor.expire.remote(stage, ids, others), timeout=_LAST_WORDS_S)

    def has_expired(self, stage: str, image_id: Hashable) -> bool:
        """See `pipeline.annotate.stages.guard.Guard`."""
        expired: bool = ray.get(self.monitor.has_expired.remote(stage, image_id))
        return expired

    @contextmanager
    def starting_replica(self) -> Iterator[None]:
        """Tell of a replica that is ready when the block ends."""
        self.monitor.start_replica.remote()
        yield
        self.monitor.have_replica.remote()

    def report(self, counts: StageCounts) -> None:
        """Add to the run's counts."""
        self.monitor.add.remote(counts)
