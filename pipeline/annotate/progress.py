"""What a person sees of a run: one line now and then, and a summary at the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.messages.timing import duration


@dataclass(frozen=True)
class Progress:
    """A moment of a run.

    Attributes:
        total: images this run has to do.
        counts: the monitor's counters.
        elapsed_s: since the run began.
        actors: replicas of the model.
    """

    total: int
    counts: Mapping[str, float]
    elapsed_s: float
    actors: int

    @property
    def done(self) -> int:
        """Images that came out, failed ones included; a retried task counts twice, but never beyond the total."""
        return min(self.total, int(self.counts.get("encoded", 0)))

    @property
    def failed(self) -> int:
        """Images that came out failed."""
        return int(sum(value for name, value in self.counts.items() if name.startswith("failed:")))

    @property
    def rate(self) -> float:
        """Images per second since the first model call."""
        seconds = self.counts.get("segmenting_s", 0.0)
        return self.done / seconds if seconds > 0 else 0.0

    @property
    def busy_share(self) -> float:
        """Of the replicas' time since the first model call, the share spent in the stage."""
        seconds = self.counts.get("segmenting_s", 0.0) * self.actors
        return min(1.0, self.counts.get("segment_s", 0.0) / seconds) if seconds > 0 else 0.0

    def time_split(self) -> dict[str, float]:
        """Seconds of work in each stage, summed over workers."""
        return {name: self.counts.get(f"{name}_s", 0.0) for name in ("fetch", "decode", "segment", "encode", "write")}

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
