"""Deals cases to child processes, counts verdicts, and keeps what is needed to see a fault again."""

from __future__ import annotations

import heapq
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from multiprocessing.connection import wait
from pathlib import Path

from benchmarks.fuzz.case import Limits, Verdict
from benchmarks.fuzz.child import Child, Tried, load_kind

_POLL_S = 0.02  # how far a case can get beyond its memory
_SHOWN = 5
_KEPT_PER_CAUSE = 3

Cause = tuple[Verdict, str]


@dataclass
class Campaign:
    """What became of all cases.

    Attributes:
        asked: how many were to be tried; fewer were if the time was over.
        verdicts: cases by verdict.
        causes: faults by verdict and cause.
        examples: the first faults of each cause, with their files.
        slowest: the cases that took longest.
        largest: those that took most memory.
        seconds: of the whole.
        noise_lines: what libraries wrote to the children's standard error.
        restarts: children replaced because of what they had kept.
    """

    asked: int
    verdicts: Counter[Verdict] = field(default_factory=Counter)
    causes: Counter[Cause] = field(default_factory=Counter)
    examples: dict[Cause, list[Tried]] = field(default_factory=dict)
    slowest: list[Tried] = field(default_factory=list)
    largest: list[Tried] = field(default_factory=list)
    seconds: float = 0.0
    noise_lines: int = 0
    restarts: int = 0

    @property
    def tried(self) -> int:
        """Cases with a verdict."""
        return self.verdicts.total()

    @property
    def good(self) -> bool:
        """Whether all were tried and none was a fault."""
        return self.tried == self.asked and not self.causes

    def add(self, tried: Tried, child: Child, faults: Path) -> None:
        """Count a case. The files of the first faults of each cause are kept."""
        verdict = tried.outcome.verdict
        self.verdicts[verdict] += 1
        self.slowest = heapq.nlargest(_SHOWN, [*self.slowest, tried], key=lambda one: one.seconds)
        self.largest = heapq.nlargest(_SHOWN, [*self.largest, tried], key=lambda one: one.memory_bytes)
        if verdict.is_fault:
            cause = verdict, tried.outcome.cause
            self.causes[cause] += 1
            examples = self.examples.setdefault(cause, [])
            if len(examples) < _KEPT_PER_CAUSE:
                examples.append(replace(tried, kept=child.keep(faults / str(tried.index))))


def run_cases(
    place: str,
    indices: Iterable[int],
    seed: int,
    folder: Path,
    jobs: int = 1,
    minutes: float = 60.0,
    limits: Limits | None = None,
) -> Campaign:
    """Try cases of a kind.

    Args:
        place: of the kind, as `load_kind` takes it.
        indices: of the cases.
        seed: of the campaign.
        folder: for the files of the children, and, in ``faults``, those of faults.
        jobs: children at a time.
        minutes: after which no further case is begun.
        limits: of a case; ``None`` for the kind's own.

    Raises:
        RuntimeError: a child process does not start.
    """
    started = time.monotonic()
    waiting = list(indices)[::-1]
    campaign = Campaign(len(waiting))
    limits = limits or load_kind(place).limits
    children = [Child(place, seed, folder / f"child{number}", limits) for number in range(min(jobs, len(waiting)))]
    try:
        while waiting or any(child.is_busy for child in children):
            if time.monotonic() - started > minutes * 60:
                waiting.clear()
            for child in children:
                if waiting and child.is_ready:
                    child.begin(waiting.pop())
            wait([source for child in children for source in child.sources], timeout=_POLL_S)
            for child in children:
                if (tried := child.look()) is not None:
                    campaign.add(tried, child, folder / "faults")
                    campaign.restarts += child.renew()
    finally:
        for child in children:
            child.end()
    campaign.noise_lines = sum(child.noise_lines() for child in children)
    campaign.seconds = time.monotonic() - started
    return campaign
