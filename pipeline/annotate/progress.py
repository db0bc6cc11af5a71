"""What a person sees of a run: one line now and then, and a summary at the end."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline.annotate.stages.stage import StageCounts
from pipeline.messages.timing import duration


@dataclass(frozen=True)
class Snapshot:
    """What the workers of a run have done so far.

    Attributes:
        counts: sum of what their stages reported.
        segmenting_s: seconds since the first model call began; 0 before it.
    """

    counts: StageCounts = field(default_factory=StageCounts)
    segmenting_s: float = 0.0


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
        """Images that came out, failed ones included; a retried task counts twice, but never beyond the total."""
        return min(self.total, self.so_far.counts.encoded)

    @property
    def failed(self) -> int:
        """Images that came out failed."""
        return self.so_far.counts.failed.total()

    @property
    def rate(self) -> float:
        """Images per second since the first model call."""
        seconds = self.so_far.segmenting_s
        return self.done / seconds if seconds > 0 else 0.0

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

    def line(self) -> str:
        """Done, failed, rate, time split, busy share, time to go."""
        split = self.time_split()
        work = sum(split.values()) or 1.0
        shares = " ".join(f"{name} {seconds / work:.0%}" for name, seconds in split.items())
        left = f"{duration((self.total - self.done) / self.rate)} to go" if self.rate > 0 else "starting"
        return (
            f"{self.done:,}/{self.total:,} images ({self.failed:,} failed) | {self.rate:.1f} img/s | {shares} | "
            f"replicas busy {self.busy_share:.0%} | {left}"
        )
