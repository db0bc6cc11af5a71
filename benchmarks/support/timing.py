"""Times that mean what they say: the device is waited for around a round and never inside of it, hooks go when done."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

PARTS = ("backbone", "neck", "rpn", "box_heads", "mask_heads")


@dataclass(frozen=True)
class Times:
    """Of one thing, round after round.

    Attributes:
        rounds_s: seconds of each round.
    """

    rounds_s: tuple[float, ...]

    @property
    def best_s(self) -> float:
        """Of the round that was disturbed least."""
        return min(self.rounds_s)

    @property
    def median_s(self) -> float:
        """Of the round in the middle: what work after work takes."""
        return statistics.median(self.rounds_s)


def timed(once: Callable[[], object], device: torch.device, rounds: int, warm_up: int = 3) -> Times:
    """The time of a call, in rounds of one; arguments as for `alternating`."""
    return alternating({"": once}, device, rounds, warm_up)[""]


def alternating(
    calls: Mapping[str, Callable[[], object]], device: torch.device, rounds: int, warm_up: int = 1
) -> dict[str, Times]:
    """The time of each call, in rounds of one of each: what disturbs the machine for long disturbs them alike.

    Args:
        device: waited for before a call and at its end.
        warm_up: calls of each before the first round: compilation, recorded graphs, choice of algorithms, memory pools.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(warm_up + rounds):
        for name, once in calls.items():
            start = now(device)
            once()
            if i >= warm_up:
                seconds[name].append(now(device) - start)
    return {name: Times(tuple(times)) for name, times in seconds.items()}


def now(device: torch.device) -> float:
    """Seconds on a clock, once the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class PartTimes:
    """Seconds of a detector's parts, by part, summed over the calls while it is entered.

    On a GPU by events in the stream of work, so that nothing waits there for the sake of being timed. The hooks are
    there as long as it is entered, and no longer.
    """

    def __init__(self, detector: nn.Module, device: torch.device) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(PARTS, 0.0)
        self._detector = detector
        self._device = device
        self._hooks: list[RemovableHandle] = []
        self._marks: dict[str, list[Any]] = defaultdict(list)

    def __enter__(self) -> PartTimes:
        for name in PARTS:
            part = getattr(self._detector, name)

            def mark(*_: Any, name: str = name) -> None:
                self._marks[name].append(self._mark())

            self._hooks += [part.register_forward_pre_hook(mark), part.register_forward_hook(mark)]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._hooks:
            self._hooks.pop().remove()
        if kind is None:
            now(self._device)
            for name, marks in self._marks.items():
                self.seconds[name] += sum(map(self._between, marks[::2], marks[1::2]))
        self._marks.clear()

    def _mark(self) -> Any:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _between(self, start: Any, end: Any) -> float:
        return start.elapsed_time(end) / 1e3 if self._device.type == "cuda" else end - start
