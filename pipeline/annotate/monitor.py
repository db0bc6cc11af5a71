"""One small actor per run, outside the workers: it counts, and it remembers which images are in flight.

What it counts is for people to watch; a retried task counts twice. The books are closed from the output.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Sequence
from typing import Any

import ray
from ray.util.metrics import Counter as MetricCounter
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.annotate.stages.guard import InProcessGuard


class RunMonitor(InProcessGuard):
    """Counters by name, and the guard's book-keeping."""

    def __init__(self) -> None:
        super().__init__()
        self._counts: dict[str, float] = {}
        self._first_segment: float | None = None

    def add(self, counts: dict[str, float]) -> None:
        """Add to the named counters."""
        for name, value in counts.items():
            self._counts[name] = self._counts.get(name, 0.0) + value
        if self._first_segment is None and "segmented" in counts:
            self._first_segment = time.monotonic() - counts.get("segment_s", 0.0)

    def snapshot(self) -> dict[str, float]:
        """The counters, and ``segmenting_s``: seconds since the first model call began."""
        elapsed = 0.0 if self._first_segment is None else time.monotonic() - self._first_segment
        return {**self._counts, "segmenting_s": elapsed}


def start_monitor() -> Any:
    """A monitor on the driver's node, where it lives as long as the run does.

    Should its process be killed, another one starts with empty books, and the calls that waited go to that one:
    the progress line begins again, and images that kill processes are suffered a little longer.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": here}
    return ray.remote(RunMonitor).options(**options).remote()


class MonitorClient:
    """A worker's end of the monitor: the `Guard` of its stage, and the `report` callable.

    Everything reported also goes to Ray's metrics as ``maskfleet_<name>_total``.
    """

    def __init__(self, monitor: Any) -> None:
        self._monitor = monitor
        self._metrics: dict[str, MetricCounter] = {}

    def begin(self, stage: str, ids: Sequence[Hashable]) -> list[int]:
        """See `pipeline.annotate.stages.guard.Guard`; returns when the monitor has written the rows down."""
        return ray.get(self._monitor.begin.remote(stage, ids))

    def retry(self, stage: str, image_id: Hashable) -> None:
        """See `pipeline.annotate.stages.guard.Guard`; returns when the monitor has written the row down."""
        ray.get(self._monitor.retry.remote(stage, image_id))

    def end(self, stage: str, ids: Sequence[Hashable]) -> None:
        """See `pipeline.annotate.stages.guard.Guard`. Not waited for: calls of one process arrive in order."""
        self._monitor.end.remote(stage, ids)

    def report(self, counts: dict[str, float]) -> None:
        """Add to the run's counters."""
        self._monitor.add.remote(counts)
        for name, value in counts.items():
            metric = name.replace(":", "_")
            if metric not in self._metrics:
                self._metrics[metric] = MetricCounter(f"maskfleet_{metric}_total", f"{name}, summed over the run")
            if value > 0:
                self._metrics[metric].inc(value)
