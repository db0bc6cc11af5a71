"""Images that kill the process: found after two deaths, and at whose cost."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Collection, Hashable, Sequence
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.annotate.stages.guard import MAX_DEATHS, TIMEOUT_EXIT_CODE, Deadline, InProcessGuard, run_guarded
from pipeline.annotations.failure import ImageFailure

STAGE = "decode"


class Killed(BaseException):
    """The process is gone; what the guard knows is not."""


class Worker:
    """Processes that die of culprits, and at given moments from outside; a moment is a call of guard or work."""

    def __init__(self, culprits: Collection[Hashable] = (), kill_at: Collection[int] = ()) -> None:
        self.guard = InProcessGuard()
        self.culprits = culprits
        self.kill_at = kill_at
        self.moment = 0
        self.deaths_by_culprit = 0
        self.deaths_from_outside = 0
        self.calls: list[list[Hashable]] = []
        self.alone: Hashable | None = None
        self.killed_alone: set[Hashable] = set()

    def begin(self, stage: str, ids: Sequence[Hashable]) -> list[int]:
        self.alone = None
        self.tick()
        deaths = self.guard.begin(stage, ids)
        self.tick()
        return deaths

    def retry(self, stage: str, image_id: Hashable) -> None:
        self.tick()
        self.guard.retry(stage, image_id)
        self.alone = image_id
        self.tick()

    def end(self, stage: str, ids: Sequence[Hashable]) -> None:
        self.tick()
        self.guard.end(stage, ids)
        self.alone = None
        self.tick()

    def survive(self, stage: str, image_id: Hashable) -> None:
        self.end(stage, [image_id])

    def expire(self, stage: str, ids: Sequence[Hashable], others: Sequence[Hashable]) -> None:
        self.guard.expire(stage, ids, others)

    def has_expired(self, stage: str, image_id: Hashable) -> bool:
        return self.guard.has_expired(stage, image_id)

    def settle(self, key: str, order: bytes = b"") -> bytes:
        return self.guard.settle(key, order)

    def tick(self) -> None:
        self.moment += 1
        if self.moment in self.kill_at:
            self.deaths_from_outside += 1
            if self.alone is not None:
                self.killed_alone.add(self.alone)
            raise Killed

    def process(self, ids: Sequence[Hashable]) -> list[str | ImageFailure]:
        """One life: the batch's results, or Killed."""

        def work(members: list[int]) -> list[str]:
            chosen = [ids[i] for i in members]
            self.calls.append(chosen)
            if any(i in self.culprits for i in chosen):
                self.deaths_by_culprit += 1
                raise Killed
            return [f"done {i}" for i in chosen]

        return run_guarded(self, STAGE, ids, work)

    def until_complete(self, ids: Sequence[Hashable]) -> list[str | ImageFailure]:
        """As Ray does it: another process, the same rows."""
        for _ in range(MAX_DEATHS * len(ids) + len(self.kill_at) + 1):
            try:
                return self.process(ids)
            except Killed:
                continue
        raise AssertionError("the batch never completes")


def refused(results: Sequence[str | ImageFailure], ids: Sequence[Hashable]) -> set[Hashable]:
    return {i for i, result in zip(ids, results, strict=True) if isinstance(result, ImageFailure)}


def test_a_batch_without_deaths_is_worked_on_at_once() -> None:
    worker = Worker()
    assert worker.process(["a", "b"]) == ["done a", "done b"]
    assert worker.calls == [["a", "b"]]
    assert worker.guard.begin(STAGE, ["a", "b"]) == [0, 0]


def test_empty_batch() -> None:
    worker = Worker()
    assert worker.process([]) == []
    assert worker.calls == []


def test_the_culprit_is_found_after_two_deaths_and_the_others_survive() -> None:
    worker = Worker(culprits={"c"})
    results = worker.until_complete(["a", "b", "c", "d"])
    assert worker.deaths_by_culprit == 2
    # The batch dies; then singles, until the culprit dies alone; then those that are left.
    assert worker.calls == [["a", "b", "c", "d"], ["a"], ["b"], ["c"], ["a", "b"], ["d"]]
    error = ImageFailure(STAGE, "process_killed", "the process died 2 times on this image")
    assert results == ["done a", "done b", error, "done d"]


def test_new_rows_share_a_call_while_those_with_a_death_come_alone() -> None:
    worker = Worker(kill_at={2})
    with pytest.raises(Killed):
        worker.process(["a", "b"])
    assert worker.process(["x", "a", "y", "b"]) == ["done x", "done a", "done y", "done b"]
    assert worker.calls == [["x", "y"], ["a"], ["b"]]


def test_a_culprit_keeps_its_verdict_in_another_batch() -> None:
    worker = Worker(culprits={"c"})
    worker.until_complete(["a", "c"])
    assert refused(worker.process(["x", "c"]), ["x", "c"]) == {"c"}
    assert worker.deaths_by_culprit == 2


def test_a_batch_of_one_costs_two_deaths_too() -> None:
    worker = Worker(culprits={"c"})
    assert refused(worker.until_complete(["c"]), ["c"]) == {"c"}
    assert worker.calls == [["c"], ["c"]]


def test_stages_are_counted_apart() -> None:
    guard = InProcessGuard()
    guard.begin("decode", [1, 2])
    assert guard.begin("segment", [1, 2]) == [0, 0]
    guard.end("decode", [1])
    assert guard.begin("decode", [1, 2]) == [0, 1]
    assert guard.begin("segment", [1, 2]) == [1, 1]


def test_ids_of_text_and_number_are_told_apart() -> None:
    guard = InProcessGuard()
    guard.begin(STAGE, [1])
    assert guard.begin(STAGE, ["1", 1]) == [0, 1]


def test_an_end_that_comes_late_leaves_the_row_in_flight_where_it_is_now() -> None:
    guard = InProcessGuard()
    guard.begin(STAGE, ["a"], by="first")
    assert guard.begin(STAGE, ["a"], by="second") == [1]  # whether the first one died, nobody knows yet
    guard.retry(STAGE, "a", by="second")
    guard.end(STAGE, ["a"], by="first")
    assert guard.begin(STAGE, ["a"], by="third") == [1]  # of the second
    guard.retry(STAGE, "a", by="third")
    guard.survive(STAGE, "a", by="third")
    guard.end(STAGE, ["a"], by="second")
    assert guard.begin(STAGE, ["a"]) == [0]


def test_what_expires_beside_a_row_takes_the_mark_of_that_process_alone() -> None:
    guard = InProcessGuard()
    guard.begin(STAGE, ["a", "slow"], by="first")
    guard.retry(STAGE, "a", by="second")
    guard.expire(STAGE, ["slow"], ["a"], by="first")
    assert guard.begin(STAGE, ["a", "slow"], by="third") == [1, 1]


def test_the_first_order_of_a_piece_of_work_is_settled() -> None:
    guard = InProcessGuard()
    assert guard.settle("rows of 7") == b""
    assert guard.settle("rows of 7", b"\1\0") == b"\1\0"
    assert guard.settle("rows of 7", b"\0\1") == b"\1\0"
    assert guard.settle("rows of 7") == b"\1\0"
    assert guard.settle("rows of 8", b"\0\1") == b"\0\1"


def test_an_innocent_in_flight_alone_at_a_kill_from_outside_is_refused() -> None:
    """The guard cannot know better: the batch it was in died, and then it was the only one at work."""
    worker = Worker(culprits={"c"}, kill_at={5})  # moments: begin 1 2, then the batch dies; begin 3 4, retry 5 6
    results = worker.until_complete(["a", "c", "b"])
    assert refused(results, "acb") == {"c"}  # killed just before the retry was written down: nothing held against "a"
    worker = Worker(culprits={"c"}, kill_at={6})
    results = worker.until_complete(["a", "c", "b"])
    assert worker.killed_alone == {"a"}
    assert refused(results, "acb") == {"a", "c"}
    assert results[2] == "done b"


def test_one_kill_from_outside_costs_no_image() -> None:
    for moment in range(1, 12):
        worker = Worker(kill_at={moment})
        assert worker.until_complete(["a", "b", "c"]) == ["done a", "done b", "done c"]


@given(size=st.integers(1, 12), culprits=st.sets(st.integers(0, 11), max_size=5))
@settings(deadline=None, max_examples=300)
def test_culprits_alone(size: int, culprits: set[int]) -> None:
    """Without kills from outside: all culprits refused, no one else, and no culprit kills more than twice."""
    ids = list(range(size))
    culprits &= set(ids)
    worker = Worker(culprits)
    results = worker.until_complete(ids)
    assert refused(results, ids) == culprits
    assert [results[i] for i in ids if i not in culprits] == [f"done {i}" for i in ids if i not in culprits]
    for culprit in culprits:
        fatal = [call for call in worker.calls if culprit in call]
        assert len(fatal) == MAX_DEATHS
        assert fatal[-1] == [culprit]
    assert worker.deaths_by_culprit == (1 + len(culprits) if culprits else 0)


@given(
    size=st.integers(1, 10),
    culprits=st.sets(st.integers(0, 9), max_size=4),
    kill_at=st.sets(st.integers(1, 60), max_size=8),
)
@example(size=2, culprits={1}, kill_at={6})
@settings(deadline=None, max_examples=500)
def test_culprits_and_kills_from_outside(size: int, culprits: set[int], kill_at: set[int]) -> None:
    """A batch always completes; an innocent is refused exactly if a kill from outside hit it alone."""
    ids = list(range(size))
    culprits &= set(ids)
    worker = Worker(culprits, kill_at)
    results = worker.until_complete(ids)
    assert len(results) == size
    assert refused(results, ids) == culprits | worker.killed_alone
    assert all(results[i] == f"done {i}" for i in ids if i not in culprits | worker.killed_alone)
    for culprit in culprits:
        assert sum(culprit in call for call in worker.calls) <= MAX_DEATHS
    assert len(worker.killed_alone) <= worker.deaths_from_outside


class ExpiringWorker(Worker):
    """Its processes end when a step is at a slow row, as a `Deadline` ends them; steps are of some rows together."""

    def __init__(self, slow: Collection[Hashable], culprits: Collection[Hashable] = (), step: int = 1) -> None:
        super().__init__(culprits)
        self.slow = slow
        self.size = step

    def process(self, ids: Sequence[Hashable]) -> list[str | ImageFailure]:
        deadline = Deadline(None, "images.decode_timeout_s")
        deadline.limit_s = 9.0  # for the message; nothing watches

        def watching(name_them: Any) -> Any:
            self.name_them = name_them
            return Deadline(None, "").watching(name_them)

        deadline.watching = watching  # type: ignore[method-assign]

        def work(members: list[int]) -> list[str]:
            self.calls.append([ids[i] for i in members])
            for start in range(0, len(members), self.size):
                step = members[start : start + self.size]
                if any(ids[i] in self.culprits for i in step):
                    raise Killed
                if any(ids[i] in self.slow for i in step):
                    self.name_them(step)
                    raise Killed
            return [f"done {ids[i]}" for i in members]

        return run_guarded(self, STAGE, ids, work, deadline)


def test_a_slow_row_is_refused_as_such_and_costs_the_others_nothing() -> None:
    worker = ExpiringWorker(slow={"c"})
    error = ImageFailure(STAGE, "timeout", "not done after 9 s (images.decode_timeout_s)")
    assert worker.until_complete(["a", "b", "c", "d"]) == ["done a", "done b", error, "done d"]
    # The others stay together: only the row that was named comes back alone.
    assert worker.calls == [["a", "b", "c", "d"], ["a", "b", "d"], ["c"], ["a", "b", "d"]]


def test_of_a_slow_batch_all_come_alone_and_one_is_refused() -> None:
    worker = ExpiringWorker(slow={"c"}, step=2)
    assert refused(worker.until_complete(["a", "b", "c", "d", "e"]), "abcde") == {"c"}
    assert worker.calls == [["a", "b", "c", "d", "e"], ["a", "b", "e"], ["c"], ["a", "b", "e"], ["d"]]


@given(
    size=st.integers(1, 10),
    slow=st.sets(st.integers(0, 9), max_size=4),
    culprits=st.sets(st.integers(0, 9), max_size=3),
    step=st.integers(1, 4),
)
@settings(deadline=None, max_examples=300)
def test_slow_rows_and_culprits(size: int, slow: set[int], culprits: set[int], step: int) -> None:
    ids = list(range(size))
    slow, culprits = (slow & set(ids)) - culprits, culprits & set(ids)
    worker = ExpiringWorker(slow, culprits, step)
    results = worker.until_complete(ids)
    assert refused(results, ids) == slow | culprits
    for image_id in ids:
        result = results[image_id]
        assert not (image_id in slow and isinstance(result, ImageFailure)) or result.code == "timeout"
    for image_id in slow | culprits:
        assert sum(image_id in call for call in worker.calls if len(call) == 1) <= MAX_DEATHS


ENDLESS = """
import json, sys, time
from pipeline.annotate.stages.guard import Deadline, InProcessGuard, run_guarded

class Telling(InProcessGuard):
    def expire(self, stage, ids, others):
        print(json.dumps([stage, list(ids), list(others)]), flush=True)
        if {fails}:
            raise RuntimeError("nobody answers")

deadline = Deadline(0.3, "images.decode_timeout_s")
def work(members):
    for m in members:
        with deadline.step([m]):
            time.sleep(0.2) if m != 2 else {endless}
    return members
run_guarded(Telling(), "decode", ["a", "b", "c", "d"], work, deadline)
"""


@pytest.mark.timeout(60)
@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("endless", ["time.sleep(100)", "[None for _ in iter(int, 1)]"])
def test_the_process_ends_and_names_the_row(endless: str, fails: bool) -> None:
    """Steps below the limit pass, however long they take together."""
    script = textwrap.dedent(ENDLESS).format(endless=endless, fails=fails)
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=50)
    assert run.returncode == TIMEOUT_EXIT_CODE
    assert run.stdout == '["decode", ["c"], ["a", "b", "d"]]\n'
    assert "images.decode_timeout_s" in run.stderr


def test_a_deadline_that_is_kept_ends_nothing() -> None:
    deadline = Deadline(0.2, "model.timeout_s")

    def work(members: list[int]) -> list[int]:
        for m in members:
            with deadline.step([m]):
                pass
        return members

    for _ in range(50):
        assert run_guarded(InProcessGuard(), STAGE, ["a", "b"], work, deadline) == [0, 1]
