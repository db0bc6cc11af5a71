"""The time of replicas: what each measures of itself, and what it adds up to for the run that pays for it."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from pipeline.annotations.run_json import AcceleratorUse, Seconds

# A replica tells of itself every two seconds. One that is silent for this long, while others are heard, has died.
_SILENT_S = 20.0


@dataclass(frozen=True)
class ReplicaReport:
    """What a replica tells of itself, all of it each time: the last report counts.

    Attributes:
        token: of this start of its process.
        actor: the same when Ray has started it anew after a death.
        accelerator: the device's name; "CPU" without one.
        gpus: it holds, 0 to 1.
        held_s: since it began to load the model.
        loading_s: of these, until the model was there.
        ready: whether it is.
        busy_s: in its stage.
        unfinished_s: of these, since it last finished a block.
        images: of the blocks that it finished.
        ended: it was let go, and does not come back.
    """

    token: str
    actor: str
    accelerator: str
    gpus: float
    held_s: float = 0.0
    loading_s: float = 0.0
    ready: bool = False
    busy_s: float = 0.0
    unfinished_s: float = 0.0
    images: int = 0
    ended: bool = False


class ReplicaClock:
    """Measures a replica, from now on, in its process. One block is at work at a time.

    Args:
        actor: the id that it keeps when it is started anew.
        accelerator: the device's name.
        gpus: that it holds.
        clock: gives seconds.
    """

    def __init__(self, actor: str, accelerator: str, gpus: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.RLock()  # a replica that is let go may be so in the middle of anything
        self._started = clock()
        self._working_since: float | None = None
        self._last = ReplicaReport(uuid.uuid4().hex, actor, accelerator, gpus)

    def loaded(self) -> None:
        """The model is there."""
        with self._lock:
            self._last = replace(self._last, ready=True, loading_s=self._clock() - self._started)

    @contextmanager
    def working(self, images: int) -> Iterator[None]:
        """A block of so many images is at work; it is finished when the block of code ends without an error."""
        with self._lock:
            self._working_since = self._clock()
        finished = False
        try:
            yield
            finished = True
        finally:
            with self._lock:
                now = self._now()
                self._working_since = None
                if finished:
                    now = replace(now, unfinished_s=0.0, images=now.images + images)
                self._last = now

    def end(self) -> None:
        """The replica was let go."""
        with self._lock:
            self._last = replace(self._now(), ended=True)

    def report(self) -> ReplicaReport:
        """As of now."""
        with self._lock:
            return self._now()

    def _now(self) -> ReplicaReport:
        last, at = self._last, self._clock()
        held_s = last.held_s if last.ended else at - self._started
        work_s = 0.0 if self._working_since is None else at - self._working_since
        return replace(
            last,
            held_s=held_s,
            loading_s=last.loading_s if last.ready else held_s,
            busy_s=last.busy_s + work_s,
            unfinished_s=last.unfinished_s + work_s,
        )


@dataclass(frozen=True)
class Used:
    """What replicas took, and gave; several add up.

    Attributes:
        images: of finished blocks; those of a block that is done again count again.
        replicas: their time, in replica-seconds.
        gpus: the same in GPU-seconds; nothing for replicas on CPUs.
        ready_s: replica-seconds with the model loaded.
    """

    images: int = 0
    replicas: Seconds = field(default_factory=Seconds)
    gpus: Seconds = field(default_factory=Seconds)
    ready_s: float = 0.0

    def __add__(self, other: Used) -> Used:
        return Used(
            self.images + other.images,
            self.replicas + other.replicas,
            self.gpus + other.gpus,
            self.ready_s + other.ready_s,
        )

    def figures(self) -> AcceleratorUse:
        """For the report."""
        gpu_s = self.gpus.held
        per_hour = round(3600 * self.images / gpu_s, 1) if gpu_s else None
        return AcceleratorUse(self.images, round(self.replicas.held, 3), round(gpu_s, 3), per_hour)


class ReplicaBook:
    """The last report of each replica, and what they come to.

    A replica has died when Ray starts its actor anew, or when it is silent while others are heard, unless it said that
    it was let go. Lost to a death are its work since the last block that it finished, and the time in which the one
    that was started in its place loads the model.

    Args:
        clock: gives seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: dict[str, tuple[ReplicaReport, float]] = {}

    def write_down(self, report: ReplicaReport) -> None:
        """A replica told of itself."""
        self._last[report.token] = report, self._clock()

    def counts(self) -> tuple[int, int]:
        """Replicas that are there, and those of them that have loaded the model."""
        there = [report for report, died, _ in self._fates() if not (died or report.ended)]
        return len(there), sum(report.ready for report in there)

    def used(self) -> dict[str, Used]:
        """By accelerator."""
        used: dict[str, Used] = {}
        for report, died, replaces in self._fates():
            unfinished_s = report.unfinished_s if died else 0.0
            lost_s = unfinished_s + (report.loading_s if replaces else 0.0)
            seconds = Seconds.of(report.held_s, report.busy_s - unfinished_s, lost_s)
            one = Used(report.images, seconds, seconds.times(report.gpus), report.held_s - report.loading_s)
            used[report.accelerator] = used.get(report.accelerator, Used()) + one
        return used

    def _fates(self) -> Iterator[tuple[ReplicaReport, bool, bool]]:
        """Each with whether it died, and whether it was started in the place of one that had."""
        heard_last = max((at for _, at in self._last.values()), default=0.0)
        newest = {report.actor: report.token for report, _ in self._last.values()}
        one_before_died: dict[str, bool] = {}
        for report, at in self._last.values():
            gone = newest[report.actor] != report.token or at < heard_last - _SILENT_S
            died = gone and not report.ended
            yield report, died, one_before_died.get(report.actor, False)
            one_before_died[report.actor] = died
