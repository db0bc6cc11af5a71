"""Images that kill the process that works on them become failed rows instead of killing it for ever.

Ray restarts a dead worker and gives it the same rows again. A guard that lives elsewhere is told which rows
are in flight; rows that were when a process died come back one at a time, so that the next death names the
culprit, and a row with two deaths to its name is refused.

Work that never ends is death too, only that somebody must bring it about: a `Deadline` knows which rows the process is
at, names them, and ends it. C code that holds no lock of Python's cannot be ended otherwise, and decoders and models
are of that kind. The rows that merely shared the block get no death to their name.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Protocol, TypeVar

from pipeline.annotations.failure import ImageFailure

logger = logging.getLogger(__name__)

MAX_DEATHS = 2
# Of a process that its deadline ended.
TIMEOUT_EXIT_CODE = 75

Result = TypeVar("Result")


class Guard(Protocol):
    """Knows which rows are in flight, and survives the death of those who work on them."""

    def begin(self, stage: str, ids: Sequence[Hashable]) -> list[int]:
        """Deaths of each row so far. Rows with none are in flight from here on."""

    def retry(self, stage: str, image_id: Hashable) -> None:
        """One row with a death to its name is in flight again, alone."""

    def end(self, stage: str, ids: Sequence[Hashable]) -> None:
        """These rows were survived. It may be written down a little later, and is lost if the process dies before."""

    def survive(self, stage: str, image_id: Hashable) -> None:
        """The one that was in flight alone was survived. Written down at once, as the next death would refuse it."""

    def expire(self, stage: str, ids: Sequence[Hashable], others: Sequence[Hashable]) -> None:
        """The process ends now, because these rows take too long; the others in flight are not at fault."""

    def has_expired(self, stage: str, image_id: Hashable) -> bool:
        """Whether the row ever was one of those that took too long."""

    def settle(self, key: str, order: bytes = b"") -> bytes:
        """The order of a piece of work, for all attempts at it: what was first proposed under this key.

        Args:
            key: names the piece of work, among all of the run.
            order: the proposal, about two bytes a row: it is kept for as long as the run lasts. Empty proposes nothing.

        Returns:
            The order that counts; empty where none was proposed yet.
        """


class InProcessGuard:
    """The book-keeping itself; the pipeline keeps one outside the workers.

    Each process of several says its name. An end may arrive after another process has begun the same row: it takes away
    its own process' mark and the deaths before it, and leaves the row in flight where it is now.
    """

    def __init__(self) -> None:
        # Who began the row and was not seen to end it, in the order in which they did: whoever comes next counts them.
        self._marks: dict[tuple[str, Hashable], list[str]] = {}
        self._expired: set[tuple[str, Hashable]] = set()
        self._settled: dict[str, bytes] = {}

    def begin(self, stage: str, ids: Sequence[Hashable], by: str = "") -> list[int]:
        """See `Guard`."""
        deaths = [len(self._marks.get((stage, i), ())) for i in ids]
        for image_id, count in zip(ids, deaths, strict=True):
            if count == 0:
                self._marks[stage, image_id] = [by]
        return deaths

    def retry(self, stage: str, image_id: Hashable, by: str = "") -> None:
        """See `Guard`."""
        self._marks.setdefault((stage, image_id), []).append(by)

    def end(self, stage: str, ids: Sequence[Hashable], by: str = "") -> None:
        """See `Guard`."""
        for image_id in ids:
            self._unmark((stage, image_id), by, with_earlier=True)

    def survive(self, stage: str, image_id: Hashable, by: str = "") -> None:
        """See `Guard`."""
        self.end(stage, [image_id], by)

    def expire(self, stage: str, ids: Sequence[Hashable], others: Sequence[Hashable], by: str = "") -> None:
        """See `Guard`."""
        self._expired.update((stage, image_id) for image_id in ids)
        for image_id in others:
            self._unmark((stage, image_id), by, with_earlier=False)

    def has_expired(self, stage: str, image_id: Hashable) -> bool:
        """See `Guard`."""
        return (stage, image_id) in self._expired

    def settle(self, key: str, order: bytes = b"") -> bytes:
        """See `Guard`."""
        return self._settled.setdefault(key, order) if order else self._settled.get(key, b"")

    def _unmark(self, row: tuple[str, Hashable], by: str, with_earlier: bool) -> None:
        marks = self._marks.get(row, [])
        if by not in marks:
            return
        last = max(i for i, name in enumerate(marks) if name == by)
        left = marks[last + 1 :] if with_earlier else marks[:last] + marks[last + 1 :]
        if left:
            self._marks[row] = left
        else:
            del self._marks[row]


class _Step(NamedTuple):
    due: float
    members: Collection[int]


class Deadline:
    """Ends this process when a step of its work takes too long.

    Args:
        limit_s: of one step; ``None`` for no limit.
        setting: the key of the config that sets it, for people.
    """

    def __init__(self, limit_s: float | None, setting: str) -> None:
        self.limit_s = limit_s
        self.setting = setting
        self._step: _Step | None = None

    @contextmanager
    def step(self, members: Collection[int]) -> Iterator[None]:
        """A step of the work on these rows of the batch."""
        if self.limit_s is not None:
            self._step = _Step(time.monotonic() + self.limit_s, members)
        try:
            yield
        finally:
            self._step = None

    @contextmanager
    def watching(self, name_them: Callable[[Collection[int]], None]) -> Iterator[None]:
        """Watch steps from a thread of its own; the callback is told of the rows right before the process ends."""
        if self.limit_s is None:
            yield
            return
        over = threading.Event()
        threading.Thread(target=self._watch, args=(over, self.limit_s, name_them), daemon=True).start()
        try:
            yield
        finally:
            over.set()

    def _watch(self, over: threading.Event, limit_s: float, name_them: Callable[[Collection[int]], None]) -> None:
        wait_s = limit_s
        # A step that begins while this thread waits is due after it wakes up.
        while not over.wait(wait_s):
            step = self._step
            wait_s = limit_s if step is None else step.due - time.monotonic()
            if step is not None and wait_s <= 0:
                try:
                    logger.error("not done after %g s (%s): this process ends", limit_s, self.setting)
                    name_them(step.members)
                finally:
                    os._exit(TIMEOUT_EXIT_CODE)


def run_guarded(
    guard: Guard,
    stage: str,
    ids: Sequence[Hashable],
    work: Callable[[list[int]], list[Result]],
    deadline: Deadline | None = None,
) -> list[Result | ImageFailure]:
    """Do a batch's work so that no row can kill the process more than `MAX_DEATHS` times.

    Args:
        guard: where the deaths are counted.
        stage: name of the stage, for the error row.
        ids: of the batch's rows.
        work: gets positions in the batch and returns their results in that order; must not raise.
        deadline: of the steps that the work tells it of, by positions in the batch.
    """
    deadline = deadline or Deadline(None, "")
    deaths = guard.begin(stage, ids)
    results: dict[int, Result | ImageFailure] = {}
    clean = [i for i, count in enumerate(deaths) if count == 0]
    in_flight = clean

    def name_them(members: Collection[int]) -> None:
        guard.expire(stage, [ids[i] for i in members], [ids[i] for i in in_flight if i not in members])

    with deadline.watching(name_them):
        if clean:
            results.update(zip(clean, work(clean), strict=True))
            guard.end(stage, [ids[i] for i in clean])
        for i, count in enumerate(deaths):
            if count >= MAX_DEATHS:
                results[i] = _refusal(guard, stage, ids[i], count, deadline)
            elif count > 0:
                guard.retry(stage, ids[i])
                in_flight = [i]
                results[i] = work([i])[0]
                guard.survive(stage, ids[i])
    return [results[i] for i in range(len(ids))]


@contextmanager
def all_in_flight(
    guard: Guard, stage: str, ids: Sequence[Hashable], deadline: Deadline
) -> Iterator[Callable[[Sequence[int]], None] | None]:
    """Rows that are worked on one after the other, and are in flight together, where none of them met a death before.

    Args:
        guard, stage, ids: as `run_guarded` has them.
        deadline: of the steps that the work tells it of, by positions in ``ids``.

    Yields:
        What is told of the positions that were survived. ``None`` where a row has a death to its name: then none is
        in flight, and the rows are for `run_guarded`, a few at a time.
    """
    left = dict.fromkeys(range(len(ids)))

    def survived(members: Sequence[int]) -> None:
        for i in members:
            del left[i]
        guard.end(stage, [ids[i] for i in members])

    def name_them(members: Collection[int]) -> None:
        guard.expire(stage, [ids[i] for i in members], [ids[i] for i in left if i not in members])

    deaths = guard.begin(stage, ids)
    if any(deaths):
        survived([i for i, count in enumerate(deaths) if count == 0])
        yield None
    else:
        with deadline.watching(name_them):
            yield survived


def _refusal(guard: Guard, stage: str, image_id: Hashable, deaths: int, deadline: Deadline) -> ImageFailure:
    if guard.has_expired(stage, image_id):
        return ImageFailure(stage, "timeout", f"not done after {deadline.limit_s:g} s ({deadline.setting})")
    return ImageFailure(stage, "process_killed", f"the process died {deaths} times on this image")
