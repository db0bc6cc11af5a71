"""What a person sees of a run: one line now and then; and whether it is worth going on."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from pipeline.annotate.config import StopConfig
from pipeline.annotate.stages.stage import StageCounts
from pipeline.messages.counts import counted
from pipeline.messages.timing import duration


@dataclass(frozen=True)
class Snapshot:
    """What the workers of a run have done so far.

    Attributes:
        counts: sum of what their stages reported.
        segmenting_s: seconds since the first model call began; 0 before it.
        starting: replicas of the model that have begun to load it, those of a process that was killed as well.
        ready: those that have loaded it.
    """

    counts: StageCounts = field(default_factory=StageCounts)
    segmenting_s: float = 0.0
    starting: int = 0
    ready: int = 0


@dataclass(frozen=True)
class Progress:
    """A moment of a run.

    Attributes:
        total: images this run has to do.
        so_far: what the monitor knows.
        elapsed_s: since the run began.
        actors: replicas of the model.
    """

    total: int
    so_far: Snapshot
    elapsed_s: float
    actors: int

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
        """Of the replicas' time since the first model call, the share spent in the stage."""
        seconds = self.so_far.segmenting_s * self.actors
        return min(1.0, self.so_far.counts.segment_s / seconds) if seconds > 0 else 0.0

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
    def replicas_ready(self) -> int:
        """Replicas that have loaded the model; one that was killed counts with the one in its place."""
        return min(self.actors, self.so_far.ready)

    @property
    def seconds_to_go(self) -> float | None:
        """Until the last image is through the model, at the rate so far; ``None`` while there is none."""
        return (self.total - self.segmented) / self.rate if self.rate else None

    @property
    def waiting(self) -> bool:
        """Whether no image has come through the model's stage yet: there are no figures."""
        return not self.so_far.counts.segmented

    def line(self) -> str:
        """Written, segmented, failed, rate, time split, busy share, time to go; before the first image, what is due."""
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
        there = "replicas" if self.replicas_ready == self.actors else f"{self.replicas_ready:,} of {self._replicas},"
        busy = f"{there} busy {self.busy_share:.0%}"
        return f"{done} | {self.rate:.1f} img/s | {shares} | {busy} | {duration(left)} to go"

    def _waiting_line(self) -> str:
        missing = self.actors - min(self.actors, self.so_far.starting)
        if missing == self.actors:
            return f"waiting for {self._replicas} of the model to start"
        step = "the first images are with the model" if self.so_far.ready else "loading the model"
        more = f", waiting for {missing:,} of {self.actors:,} to start" if missing else ""
        return f"{step}: {self.replicas_ready:,} of {self._replicas} ready{more}"

    @property
    def _replicas(self) -> str:
        return counted(self.actors, "replica")


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
