"""A run in Ray's metrics, which Prometheus reads from any node: docs/monitoring.md names them.

The driver alone sets them, from what a person sees of the run, so that the line on a terminal and a dashboard agree.
Ray puts ``ray_`` before each name, drops gauges some 20 seconds after their process last set them, and keeps counters.
"""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from ray.util.metrics import Counter, Gauge

from pipeline.annotate.progress import Progress

PREFIX = "maskfleet_"
_RUN = "run"
Kind = TypeVar("Kind", Gauge, Counter)


class Metric(NamedTuple):
    """What Prometheus knows of a metric.

    Attributes:
        name: without Ray's prefix.
        about: with the unit.
        label: beside that of the run.
    """

    name: str
    about: str
    label: str | None = None

    @property
    def is_counter(self) -> bool:
        """Whether it only grows; else it is a gauge."""
        return self.name.endswith("_total")


WRITTEN = Metric(f"{PREFIX}images_written_total", "Images whose rows are in files, failed ones included.")
FAILED = Metric(f"{PREFIX}images_failed_total", "Images that came out failed.", "code")
STAGE_SECONDS = Metric(f"{PREFIX}stage_seconds_total", "Seconds of work, summed over all processes.", "stage")
DUE = Metric(f"{PREFIX}images_due", "Images that the run has to do.")
PENDING = Metric(f"{PREFIX}images_pending", "Of them, those that are not in a file yet.")
RATE = Metric(f"{PREFIX}images_per_second", "Images per second through the model, since its first call.")
ETA = Metric(f"{PREFIX}eta_seconds", "Seconds to go at that rate.")
FILL = Metric(f"{PREFIX}batch_fill_ratio", "Of the room in the model's batches, the share that images took, 0 to 1.")
WANTED = Metric(f"{PREFIX}replicas_wanted", "Replicas of the model that the run begins with.")
READY = Metric(f"{PREFIX}replicas_ready", "Replicas that have loaded it.")
BUSY = Metric(f"{PREFIX}replicas_busy_ratio", "Share of the replicas' time with the model loaded, at work, 0 to 1.")
PROGRESSED = Metric(f"{PREFIX}progress_timestamp_seconds", "Unix time at which an image last came through a stage.")
METRICS = (WRITTEN, FAILED, STAGE_SECONDS, DUE, PENDING, RATE, ETA, FILL, WANTED, READY, BUSY, PROGRESSED)


@dataclass
class RunMetrics:
    """The metrics of one run; used by one thread at a time.

    Attributes:
        run_id: their label ``run``.
    """

    run_id: str
    _counted: dict[tuple[str, str], float] = field(default_factory=dict)
    _moved: float = -1.0

    def set(self, progress: Progress) -> None:
        """As the run is now; a sum that fell is that of a monitor that began anew."""
        counts = progress.so_far.counts
        self._count(WRITTEN, counts.written)
        for code, images in counts.failed.items():
            self._count(FAILED, images, code)
        for stage, seconds in progress.time_split().items():
            self._count(STAGE_SECONDS, seconds, stage)
        self._gauge(DUE, progress.total)
        self._gauge(PENDING, progress.total - progress.done)
        self._gauge(RATE, progress.rate)
        if (left := progress.seconds_to_go) is not None:
            self._gauge(ETA, left)
        if progress.batch_fill is not None:
            self._gauge(FILL, progress.batch_fill)
        self._gauge(WANTED, progress.actors)
        self._gauge(READY, progress.so_far.ready)
        self._gauge(BUSY, progress.busy_share)
        moved = counts.decoded + counts.segmented + counts.written
        if moved != self._moved:
            self._moved = moved
            self._gauge(PROGRESSED, time.time())

    def end(self, progress: Progress, pending: int) -> None:
        """The run is over: nothing moves any more, and what is pending stays so.

        Args:
            progress: its last moment.
            pending: images without a row, exactly.
        """
        self.set(progress)
        self._gauge(PENDING, pending)
        for metric in (RATE, ETA, WANTED, READY, BUSY):
            self._gauge(metric, 0)

    def _gauge(self, metric: Metric, value: float) -> None:
        _made(metric, Gauge).set(value, tags={_RUN: self.run_id})

    def _count(self, metric: Metric, total: float, label: str = "") -> None:
        before = self._counted.get((metric.name, label), 0.0)
        self._counted[metric.name, label] = total
        more = total - before if total >= before else total
        if more > 0:
            _made(metric, Counter).inc(more, tags={_RUN: self.run_id} | ({metric.label: label} if metric.label else {}))


@functools.cache
def _made(metric: Metric, kind: type[Kind]) -> Kind:
    """One for each process: Ray takes a name once."""
    return kind(metric.name, metric.about, (_RUN,) if metric.label is None else (_RUN, metric.label))
