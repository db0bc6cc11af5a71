"""What a person sees of a run: one line now and then; and whether it is worth going on."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from pipeline.annotate.config import StopConfig
from pipeline.annotate.replica_time import Used
from pipeline.annotate.stages.stage import StageCounts
from pipeline.messages.counts import counted
from pipeline.messages.timing import duration


@dataclass(frozen=True)
class Snapshot:
    """What the workers of a run have done so far.

    Attributes:
        counts: sum of what their stages reported.
        segmenting_s: seconds since the first model call began; 0 before it.
        starting: replicas of the model that have begun to load it and are there.
        ready: those of them that have loaded it.
        by_accelerator: what the replicas took and gave, by the name of their device; those that are gone as well.
    """

    counts: StageCounts = field(default_factory=StageCounts)
    segmenting_s: float = 0.0
    starting: int = 0
    ready: int = 0
    by_accelerator: dict[str, Used] = field(default_factory=dict)

    @property
    def used(self) -> Used:
        """By all replicas."""
        return sum(self.by_accelerator.values(), Used())


@dataclass(frozen=True)
class Progress:
    """A moment of a run.

    Attributes:
        total: images this run has to do.
        so_far: what the monitor knows.
        elapsed_s: since the run began.
        actors: replicas of the model that the run begins with; a pool that grows has more later.
        batch_size: images that a call of the model has room for.
    """

    total: int
    so_far: Snapshot
    elapsed_s: float
    actors: int
    batch_size: int

    @property
    def done(self) -> int:
        """Images in the output's files, failed ones included; a retried task counts twice, never beyond the total."""
        return min(self.total, self.so_far.counts.written)

    @property
    def segmented(self) -> int:
        """Images that passed the model, as `done` counts; those that are not done are what a kill would cost."""
        return min(self.total, self.so_far.counts.segmented)

    @property
    def failed(self) -> int:
        """Images that came out failed."""
        return self.so_far.counts.failed.total()

    @property
    def rate(self) -> float:
        """Images per second since the first model call, by the model: files come in leaps."""
        seconds = self.so_far.segmenting_s
        return self.segmented / seconds if seconds > 0 else 0.0

    @property
    def busy_share(self) -> float:
        """Of the time of all replicas that had loaded the model, as long as each was there, the share in the stage."""
        used = self.so_far.used
        return used.replicas.busy / used.ready_s if used.ready_s > 0 else 0.0

    def time_split(self) -> dict[str, float]:
        """Seconds of work in each stage, summed over workers."""
        counts = self.so_far.counts
        return {
            "fetch": counts.fetch_s,
            "decode": counts.decode_s,
            "segment": counts.segment_s,
            "encode": counts.encode_s,
            "write": counts.write_s,
        }

    @property
    def batch_fill(self) -> float | None:
        """Of the room in the model's calls, the share that images took; ``None`` before the first call."""
        counts = self.so_far.counts
        return counts.batched / (counts.batches * self.batch_size) if counts.batches else None

    @property
    def seconds_to_go(self) -> float | None:
        """Until the last image is through the model, at the rate so far; ``None`` while there is none."""
        return (self.total - self.segmented) / self.rate if self.rate else None

    @property
    def waiting(self) -> bool:
        """Whether no image has come through the model's stage yet: there are no figures."""
        return not self.so_far.counts.segmented

    def line(self) -> str:
        """Written, segmented, failed, rate, time split, full batches, replicas and their busy share, time to go; before
        the first image, what is due.
        """
        if self.waiting:
            return self._waiting_line()
        split = self.time_split()
        work = sum(split.values()) or 1.0
        shares = " ".join(f"{name} {seconds / work:.0%}" for name, seconds in split.items())
        done = (
            f"{self.done:,}/{counted(self.total, 'image')} written "
            f"({self.segmented:,} segmented, {self.failed:,} failed)"
        )
        left = self.seconds_to_go
        if left is None:
            return f"{done} | none for the model so far"
        fill = "" if self.batch_fill is None else f"batches {self.batch_fill:.0%} full | "
        ready = self.so_far.ready
        there = f"{ready:,} of {self._replicas}" if ready < self.actors else counted(ready, "replica")
        busy = f"{there} busy {self.busy_share:.0%}"
        return f"{done} | {self.rate:.1f} img/s | {shares} | {fill}{busy} | {duration(left)} to go"

    def _waiting_line(self) -> str:
        missing = self.actors - self.so_far.starting
        if missing >= self.actors:
            return f"waiting for {self._replicas} of the model to start"
        step = "the first images are with the model" if self.so_far.ready else "loading the model"
        more = f", waiting for {missing:,} of {self.actors:,} to start" if missing > 0 else ""
        return f"{step}: {self.so_far.ready:,} of {self._replicas} ready{more}"

    @property
    def _replicas(self) -> str:
        return counted(max(self.actors, self.so_far.starting), "replica")


class FailureWatch:
    """Sees when almost all of the last images failed.

    Args:
        limit: how many that is; ``None``: never.
    """

    def __init__(self, limit: StopConfig | None) -> None:
        self._limit = limit
        self._seen: deque[tuple[int, int]] = deque([(0, 0)])  # images that had come out, and failed ones, at some times

    def see(self, counts: StageCounts) -> str:
        """Why the run should end, or "".

        Args:
            counts: what has come out so far. Where they fall, their keeper died, and watching begins anew.
        """
        if self._limit is None:
            return ""
        failures = counts.failed
        codes = failures.keys() if self._limit.codes is None else self._limit.codes
        images, failed = counts.segmented, sum(failures[code] for code in codes)
        if images < self._seen[-1][0]:
            self._seen = deque([(0, 0)])
        if images > self._seen[-1][0]:
            self._seen.append((images, failed))
        while len(self._seen) > 1 and images - self._seen[1][0] >= self._limit.after:
            self._seen.popleft()
        first_images, first_failed = self._seen[0]
        last_images, last_failed = images - first_images, failed - first_failed
        if last_images < self._limit.after or last_failed < self._limit.failed_fraction * last_images:
            return ""
        often = ", ".join(code for code, _ in failures.most_common(3))
        return f"{last_failed:,} of the last {last_images:,} images failed (most often: {often})"
