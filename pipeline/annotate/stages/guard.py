"""Images that kill the process that works on them become failed rows instead of killing it for ever.

Ray restarts a dead worker and gives it the same rows again. A guard that lives elsewhere is told which rows
are in flight; rows that were when a process died come back one at a time, so that the next death names the
culprit, and a row with two deaths to its name is refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import Protocol, TypeVar

from pipeline.annotations.failure import ImageFailure

MAX_DEATHS = 2

Result = TypeVar("Result")


class Guard(Protocol):
    """Knows which rows are in flight, and survives the death of those who work on them."""

    def begin(self, stage: str, ids: Sequence[Hashable]) -> list[int]:
        """Deaths of each row so far. Rows with none are in flight from here on."""

    def retry(self, stage: str, image_id: Hashable) -> None:
        """One row with a death to its name is in flight again, alone."""

    def end(self, stage: str, ids: Sequence[Hashable]) -> None:
        """These rows were survived."""


class InProcessGuard:
    """The book-keeping itself; the pipeline keeps one outside the workers."""

    def __init__(self) -> None:
        self._in_flight: Counter[tuple[str, Hashable]] = Counter()

    def begin(self, stage: str, ids: Sequence[Hashable]) -> list[int]:
        """See `Guard`."""
        deaths = [self._in_flight[stage, i] for i in ids]
        for image_id, count in zip(ids, deaths, strict=True):
            if count == 0:
                self._in_flight[stage, image_id] = 1
        return deaths

    def retry(self, stage: str, image_id: Hashable) -> None:
        """See `Guard`."""
        self._in_flight[stage, image_id] += 1

    def end(self, stage: str, ids: Sequence[Hashable]) -> None:
        """See `Guard`."""
        for image_id in ids:
            del self._in_flight[stage, image_id]


def run_guarded(
    guard: Guard, stage: str, ids: Sequence[Hashable], work: Callable[[list[int]], list[Result]]
) -> list[Result | ImageFailure]:
    """Do a batch's work so that no row can kill the process more than `MAX_DEATHS` times.

    Args:
        guard: where the deaths are counted.
        stage: name of the stage, for the error row.
        ids: of the batch's rows.
        work: gets positions in the batch and returns their results in that order; must not raise.
    """
    deaths = guard.begin(stage, ids)
    results: dict[int, Result | ImageFailure] = {}
    clean = [i for i, count in enumerate(deaths) if count == 0]
    if clean:
        results.update(zip(clean, work(clean), strict=True))
        guard.end(stage, [ids[i] for i in clean])
    for i, count in enumerate(deaths):
        if count >= MAX_DEATHS:
            results[i] = ImageFailure(stage, "process_killed", f"the process died {count} times on this image")
        elif count > 0:
            guard.retry(stage, ids[i])
            results[i] = work([i])[0]
            guard.end(stage, [ids[i]])
    return [results[i] for i in range(len(ids))]
