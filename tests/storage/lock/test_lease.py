from __future__ import annotations

import dataclasses
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.annotations.ledger import OutputStore
from pipeline.storage.lock import holder as lock_holder
from pipeline.storage.lock.holder import LOCK_NAME, Holder, is_dead, new_holder
from pipeline.storage.lock.lease import Fence, LockLost, OutputLock
from pipeline.storage.lock.watch import LockHeld
from pipeline.storage.objects.local import LocalObjects
from pipeline.storage.objects.open import open_objects
from pipeline.storage.uris import Uri
from tests.annotations.output_cases import IDENTITY, output_table

ROOT = Path(__file__).parents[3]
LEASE_S = 0.9
LONG_LEASE_S = 60.0


@pytest.fixture(params=["local", "s3", "memory"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "out")
    if request.param == "memory":
        return f"memory://{uuid.uuid4().hex}/out"
    request.getfixturevalue("s3")
    return f"s3://bucket/{uuid.uuid4().hex}/out"


def write_lock(uri: str, holder: Holder) -> None:
    open_objects(Uri(uri), 5.0).put(LOCK_NAME, holder.encode())


def read_lock(uri: str) -> Holder:
    holder = Holder.decode(open_objects(Uri(uri), 5.0).read(LOCK_NAME)[0])
    assert holder is not None
    return holder


def stranger(run_id: str = "other", lease_s: float = LEASE_S) -> Holder:
    """A holder on another machine, of which nothing but the file can be known."""
    return dataclasses.replace(new_holder(run_id, lease_s), host="far-away", namespace="another kernel")


class TestOneRun:
    def test_a_life(self, uri: str) -> None:
        lines: list[str] = []
        with OutputLock(Uri(uri), "one", LEASE_S, report=lines.append) as lock:
            fence = pickle.loads(pickle.dumps(lock.fence()))  # noqa: S301
            fence()
            time.sleep(LEASE_S * 1.5)
            lock.check()
            fence()
            holder = read_lock(uri)
            assert holder.run_id == "one"
            assert holder.heartbeat >= 2
            assert not holder.released
        assert lock.lost_reason is None
        assert not fence.still_held()
        with pytest.raises(LockLost, match="run one no longer holds"):
            fence()
        with OutputLock(Uri(uri), "two", LONG_LEASE_S, wait_s=0) as lock:  # a released lock is free at once
            lock.check()
        assert lines == []

    def test_it_goes_back_when_the_run_fails(self, uri: str) -> None:
        def fail() -> None:
            with OutputLock(Uri(uri), "one"):
                open_objects(Uri(uri)).put("result", b"")
                raise KeyError

        with pytest.raises(KeyError):
            fail()
        assert read_lock(uri).released

    def test_written_rows_pass_the_fence(self, uri: str) -> None:
        store = OutputStore(Uri(uri))
        with OutputLock(Uri(uri), "one") as lock:
            store.write_rows(output_table([1]), IDENTITY, fence=lock.fence())
            write_lock(uri, stranger())
            with pytest.raises(LockLost):
                store.write_rows(output_table([2]), IDENTITY, fence=lock.fence())
        assert store.recover(lock.fence()).num_files == 1

    @pytest.mark.parametrize(("lease_s", "wait_s"), [(0, None), (-1, None), (1, -1)])
    def test_bad_times(self, lease_s: float, wait_s: float | None) -> None:
        with pytest.raises(ValueError, match="must be positive"):
            OutputLock(Uri("/nowhere"), "one", lease_s, wait_s)


@pytest.mark.parametrize("uri", ["local", "s3"], indirect=True)
class TestTwoRuns:
    def test_a_living_holder_is_noticed(self, uri: str) -> None:
        lines: list[str] = []
        with OutputLock(Uri(uri), "one", 1.8) as first:
            started = time.monotonic()
            with pytest.raises(LockHeld) as caught:
                OutputLock(Uri(uri), "two", report=lines.append).acquire()
            assert time.monotonic() - started < 1.8  # its heartbeat moved; no need to wait for the lease
            first.check()
        assert f"is being written by run one on {first._holder.host} (pid {os.getpid()})" in str(caught.value)  # type: ignore[union-attr]
        assert len(lines) == 1
        assert "is held by run one" in lines[0]
        assert "waiting for its lease" in lines[0]

    def test_no_wait(self, uri: str) -> None:
        with OutputLock(Uri(uri), "one", LONG_LEASE_S):
            started = time.monotonic()
            with pytest.raises(LockHeld):
                OutputLock(Uri(uri), "two", wait_s=0).acquire()
            assert time.monotonic() - started < 2.0

    def test_a_silent_stranger_loses_after_its_lease_not_ours(self, uri: str) -> None:
        write_lock(uri, stranger(lease_s=0.8))
        lines: list[str] = []
        started = time.monotonic()
        with OutputLock(Uri(uri), "two", LONG_LEASE_S, report=lines.append):
            assert 0.8 <= time.monotonic() - started < 10.0
        assert "run other on far-away" in lines[0]
        assert "no sign of life for 0.8 s" in lines[-1]

    def test_one_of_many_takers_wins(self, uri: str) -> None:
        write_lock(uri, stranger(lease_s=0.3))

        def take(number: int) -> OutputLock | None:
            lock = OutputLock(Uri(uri), f"taker-{number}", LONG_LEASE_S, wait_s=1.0, report=lambda _: None)
            try:
                lock.acquire()
            except LockHeld:
                return None
            return lock

        with ThreadPoolExecutor(6) as pool:
            winners = [lock for lock in pool.map(take, range(6)) if lock]
        assert len(winners) == 1
        winners[0].check()
        winners[0].fence()()
        winners[0].release()


@pytest.mark.parametrize("uri", ["local", "s3"], indirect=True)
class TestLoss:
    def test_when_another_run_took_over(self, uri: str) -> None:
        reasons: list[str] = []
        lock = OutputLock(Uri(uri), "one", LEASE_S, on_lost=reasons.append)
        lock.acquire()
        fence = lock.fence()
        taker = stranger("two", LONG_LEASE_S)
        write_lock(uri, taker)
        wait_until(lambda: reasons)
        assert "was taken by run two on far-away" in reasons[0]
        with pytest.raises(LockLost, match="run two"):
            lock.check()
        with pytest.raises(LockLost):
            fence()
        lock.release()
        assert read_lock(uri) == taker

    def test_when_someone_deleted_the_file(self, uri: str) -> None:
        reasons: list[str] = []
        lock = OutputLock(Uri(uri), "one", LEASE_S, on_lost=reasons.append)
        lock.acquire()
        open_objects(Uri(uri), 1.0).delete(LOCK_NAME)
        with pytest.raises(LockLost):
            lock.fence()()
        wait_until(lambda: reasons)
        assert "was deleted" in reasons[0]
        lock.release()
        assert LOCK_NAME not in [entry.name for entry in open_objects(Uri(uri), 1.0).list("").files]

    def test_not_when_only_an_answer_got_lost(self, uri: str) -> None:
        with OutputLock(Uri(uri), "one", LEASE_S) as lock:
            # As if a renewal had been written and its answer had not come: ours, in a version we do not know.
            write_lock(uri, dataclasses.replace(read_lock(uri), heartbeat=1000))
            time.sleep(LEASE_S * 1.5)
            lock.check()
            lock.fence()()
            open_objects(Uri(uri)).put("result", b"")
        assert read_lock(uri).released


class TestNothingWritten:
    """What a run leaves that ends before it has written anything: nothing that was not there."""

    @pytest.mark.parametrize("there", [(), ("a",), ("a", "a/b", "a/b/.hidden")], ids=len)
    def test_folders_that_were_there_stay(self, tmp_path: Path, there: tuple[str, ...]) -> None:
        for name in there:
            (tmp_path / name).mkdir()
        before = sorted(tmp_path.rglob("*"))
        with OutputLock(Uri(str(tmp_path / "a" / "b")), "one", LEASE_S):
            time.sleep(LEASE_S)  # renewed meanwhile
        assert sorted(tmp_path.rglob("*")) == before

    def test_what_was_written_keeps_the_lock(self, tmp_path: Path) -> None:
        with OutputLock(Uri(str(tmp_path)), "one", LEASE_S):
            (tmp_path / "run.json").write_text("{}")
            time.sleep(LEASE_S)
        assert sorted(os.listdir(tmp_path)) == [LOCK_NAME, "run.json"]  # and no guard of its file
        assert read_lock(str(tmp_path)).released

    def test_a_folder_that_cannot_be_listed_keeps_the_lock(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: object) -> None:
            raise OSError("the storage does not answer")

        with OutputLock(Uri(str(tmp_path)), "one"):
            monkeypatch.setattr(LocalObjects, "list", fail)
        assert read_lock(str(tmp_path)).released

    def test_a_lock_that_another_run_has_taken_stays(self, tmp_path: Path) -> None:
        with OutputLock(Uri(str(tmp_path)), "one"):
            write_lock(str(tmp_path), stranger())
        assert read_lock(str(tmp_path)).run_id == "other"

    def test_those_who_wait_get_it_one_after_the_other(self, tmp_path: Path) -> None:
        """Each removes the file, its guard and the folder that the others are about to look at."""
        uri, inside, most = Uri(str(tmp_path / "out")), [], []

        def hold(number: int) -> None:
            with OutputLock(uri, f"run {number}", LEASE_S, wait_s=60.0, report=lambda line: None):
                inside.append(number)
                most.append(len(inside))
                time.sleep(0.01)
                inside.remove(number)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(hold, range(24)))
        assert (max(most), len(most)) == (1, 24)
        assert not (tmp_path / "out").exists() or os.listdir(tmp_path / "out") == []


class TestOddStorage:
    def test_waiting_for_a_living_run_to_end(self, tmp_path: Path) -> None:
        uri = str(tmp_path)
        first = OutputLock(Uri(uri), "one", LEASE_S)
        first.acquire()
        threading.Timer(LEASE_S * 2, first.release).start()
        with OutputLock(Uri(uri), "two", LEASE_S, wait_s=20.0):
            assert read_lock(uri).run_id == "two"
        assert first.lost_reason is None

    @pytest.mark.parametrize("content", [b"", b"[]", b'{"run_id": 3}'])
    def test_an_unreadable_lock_is_watched_for_our_lease(self, tmp_path: Path, content: bytes) -> None:
        open_objects(Uri(str(tmp_path)), 1.0).put(LOCK_NAME, content)
        with pytest.raises(LockHeld, match="unknown run"):
            OutputLock(Uri(str(tmp_path)), "two", 0.3, wait_s=0).acquire()
        started = time.monotonic()
        with OutputLock(Uri(str(tmp_path)), "two", 0.3):
            assert time.monotonic() - started >= 0.3

    def test_when_the_storage_fails_for_a_lease(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        reasons: list[str] = []
        lock = OutputLock(Uri(str(tmp_path)), "one", LEASE_S, on_lost=reasons.append)
        lock.acquire()

        def fail(*_: object) -> str:
            raise OSError("stale file handle")

        monkeypatch.setattr(LocalObjects, "replace", fail)
        started = time.monotonic()
        wait_until(lambda: reasons)
        assert time.monotonic() - started > LEASE_S / 2
        assert "could not be renewed within its lease" in reasons[0]
        lock.release()

    def test_not_when_the_storage_recovers_in_time(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        whole, calls = LocalObjects.replace, []

        def fail_twice(objects: LocalObjects, name: str, content: bytes, version: str) -> str:
            calls.append(name)
            if len(calls) <= 2:
                raise OSError("stale file handle")
            return whole(objects, name, content, version)

        monkeypatch.setattr(LocalObjects, "replace", fail_twice)
        with OutputLock(Uri(str(tmp_path)), "one", LEASE_S) as lock:
            wait_until(lambda: len(calls) > 4)
            lock.check()


class TestIsDead:
    def test_this_process_lives(self) -> None:
        assert not is_dead(new_holder("one", 1.0))

    def test_an_ended_process(self) -> None:
        ended = subprocess.Popen([sys.executable, "-c", ""])
        ended.wait()
        assert is_dead(dataclasses.replace(new_holder("one", 1.0), pid=ended.pid, process_started="1"))

    def test_one_that_its_parent_has_not_collected(self) -> None:
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        holder = dataclasses.replace(new_holder("one", 1.0), pid=child.pid, process_started="")
        assert not is_dead(holder)
        child.kill()
        wait_until(lambda: is_dead(holder))
        child.communicate()

    def test_another_process_has_the_pid_now(self) -> None:
        holder = new_holder("one", 1.0)
        assert holder.process_started
        assert is_dead(dataclasses.replace(holder, process_started="1"))

    def test_a_pid_means_nothing_in_another_container(self) -> None:
        holder = dataclasses.replace(new_holder("one", 1.0), process_started="1")
        assert not is_dead(dataclasses.replace(holder, namespace="boot pid:[1]"))
        assert not is_dead(dataclasses.replace(holder, namespace=""))

    def test_without_proc_nothing_is_known(self, monkeypatch: pytest.MonkeyPatch) -> None:
        holder = new_holder("one", 1.0)
        monkeypatch.setattr(lock_holder, "_process_namespace", lambda: "")
        assert not is_dead(dataclasses.replace(holder, process_started="1"))


HOLD = """
import sys, time
sys.path.insert(0, {root!r})
from pipeline.storage.lock import holder as lock_holder
from pipeline.storage.lock.lease import OutputLock
from pipeline.storage.uris import Uri
if {hidden}:
    lock_holder._process_namespace = lambda: "another kernel"
with OutputLock(Uri({uri!r}), "child", {lease_s}) as lock:
    print("held", flush=True)
    # Kept, as nobody knows it any more when the lock is given back before the renewing thread woke.
    while (reason := lock.lost_reason) is None:
        time.sleep(0.02)
print(reason)
sys.exit(3)
"""
FIGHT = """
import os, sys, time
sys.path.insert(0, {root!r})
from pipeline.storage.lock.lease import OutputLock
from pipeline.storage.uris import Uri
for turn in range(6):
    with OutputLock(Uri({uri!r}), f"{{os.getpid()}}-{{turn}}", 5.0, wait_s=60.0, report=lambda line: None) as lock:
        marker = os.open({marker!r}, os.O_CREAT | os.O_EXCL)  # fails if the other one is inside
        lock.fence()()
        time.sleep(0.02)
        os.close(marker)
        os.unlink({marker!r})
"""


def start(code: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def start_holder(uri: str, lease_s: float, hidden: bool) -> subprocess.Popen[str]:
    child = start(HOLD.format(root=str(ROOT), uri=uri, lease_s=lease_s, hidden=hidden))
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    return child


@pytest.mark.parametrize("uri", ["local", "s3"], indirect=True)
class TestProcesses:
    def test_two_that_fight(self, uri: str, tmp_path: Path) -> None:
        code = FIGHT.format(root=str(ROOT), uri=uri, marker=str(tmp_path / "inside"))
        fighters = [start(code) for _ in range(2)]
        for fighter in fighters:
            _, errors = fighter.communicate(timeout=90)
            assert fighter.returncode == 0, errors

    def test_killed_on_this_machine(self, uri: str) -> None:
        child = start_holder(uri, LONG_LEASE_S, hidden=False)
        child.kill()
        child.communicate()
        lines: list[str] = []
        started = time.monotonic()
        with OutputLock(Uri(uri), "next", report=lines.append):
            assert time.monotonic() - started < 5.0
        assert len(lines) == 1
        assert "which is dead" in lines[0]


class TestOneStoreIsEnough:
    """Same code on every store, and slow: the file system for one, S3 for the other."""

    @pytest.mark.parametrize("uri", ["s3"], indirect=True)
    def test_killed_on_another_machine(self, uri: str) -> None:
        child = start_holder(uri, 1.2, hidden=True)
        child.kill()
        child.communicate()
        killed = time.monotonic()
        with OutputLock(Uri(uri), "next", LONG_LEASE_S):
            assert 0.7 < time.monotonic() - killed < 10.0

    @pytest.mark.parametrize("uri", ["local"], indirect=True)
    def test_one_that_slept_through_its_lease(self, uri: str) -> None:
        child = start_holder(uri, 1.0, hidden=True)
        token = read_lock(uri).token
        os.kill(child.pid, signal.SIGSTOP)
        with OutputLock(Uri(uri), "next", LONG_LEASE_S) as lock:
            os.kill(child.pid, signal.SIGCONT)
            reason, _ = child.communicate(timeout=20)
            assert child.returncode == 3
            assert "run next" in reason or "could not be renewed" in reason
            lock.check()
            lock.fence()()
            assert not Fence(Uri(uri), "child", token).still_held()


def wait_until(condition: object, timeout_s: float = 15.0) -> None:
    give_up_at = time.monotonic() + timeout_s
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < give_up_at, "it did not happen"
        time.sleep(0.01)
