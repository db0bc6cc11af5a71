"""A lease on an output, so that two runs never write one: ``<uri>/_lock.json``.

The holder rewrites the file, with a heartbeat one higher, three times per lease. Whoever wants the lock watches
the file by its own clock, and takes it when it has not changed for the holder's whole lease; no clocks are
compared. If the holder's process is known to be dead (same machine, same process namespace) there is nothing to
wait for. Every change of the file is conditional on the version that was seen (see ``objects``), so of two takers
one wins, and a holder that was away too long cannot take the lock back.

A holder that could not renew for a whole lease must assume that it lost the lock, and so it does. On release the
file stays, marked as released; but where nothing else is in the folder, because the run ended before it wrote
anything, the file goes, and so do the folders that were made for it. Not on S3: that has no deletion on a condition,
and one without could hit the next holder's.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from types import TracebackType

from pipeline.errors import RunError
from pipeline.storage.lock.holder import LOCK_NAME, MAX_LEASE_S, MAX_LOCK_BYTES, Holder, new_holder
from pipeline.storage.lock.watch import Watch
from pipeline.storage.objects.base import Changed, ObjectFolder
from pipeline.storage.objects.open import open_objects
from pipeline.storage.uris import Uri
from pipeline.storage.whole_file import without_new_folders

DEFAULT_LEASE_S = 60.0

logger = logging.getLogger(__name__)


class LockLost(RunError):
    """This run must not write any more."""


@dataclass(frozen=True)
class Fence:
    """Whether one acquisition of a lock still stands. Picklable, for processes that write on the run's behalf."""

    uri: Uri
    run_id: str
    token: str
    timeout_s: float = 20.0

    def still_held(self) -> bool:
        """One small read.

        Raises:
            OSError: it cannot be told.
        """
        try:
            holder = Holder.decode(open_objects(self.uri, self.timeout_s).read(LOCK_NAME, MAX_LOCK_BYTES)[0])
        except FileNotFoundError:
            return False
        return holder is not None and holder.token == self.token and not holder.released

    def __call__(self) -> None:
        """Return if the lock is held.

        Raises:
            LockLost: it is not.
            OSError: it cannot be told.
        """
        if not self.still_held():
            raise LockLost(f"run {self.run_id} no longer holds the lock of {self.uri}: nothing was written")


class OutputLock:
    """The lock of one output, held by one run: ``with OutputLock(uri, run_id) as lock: ...``.

    Args:
        uri: of the output folder; the lock is a file in it.
        run_id: for people; acquisitions are told apart by a token of their own.
        lease_s: how long others wait after the last sign of life.
        wait_s: how long to wait for another run. ``None``: only until it is known whether that run lives,
            which takes its lease at most.
        on_lost: called once, from the renewing thread, with the reason.
        report: takes a line for people while waiting.
    """

    def __init__(
        self,
        uri: Uri,
        run_id: str,
        lease_s: float = DEFAULT_LEASE_S,
        wait_s: float | None = None,
        on_lost: Callable[[str], None] | None = None,
        report: Callable[[str], None] = logger.warning,
    ) -> None:
        if not 0 < lease_s <= MAX_LEASE_S or (wait_s is not None and wait_s < 0):
            raise ValueError(f"lease_s must be positive, at most {MAX_LEASE_S:g}, and wait_s not negative")
        self._uri = uri
        self._run_id = run_id
        self._lease_s = lease_s
        self._wait_s = wait_s
        self._on_lost = on_lost
        self._report = report
        self._holder: Holder | None = None
        self._version = ""
        self._renewed_at = 0.0
        self._lost_reason: str | None = None
        self._stop = threading.Event()
        self._new_folders = ExitStack()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> OutputLock:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def acquire(self) -> None:
        """Take the lock, waiting for another run's lease where that makes sense; then renew it until `release`.

        Raises:
            LockHeld: another run has it and lives, or ``wait_s`` is over.
            OSError: the folder cannot be written.
        """
        if self._holder is not None:
            raise RuntimeError("a lock is acquired once; make another one")
        with self._new_folders:
            self._new_folders.enter_context(without_new_folders(self._uri.local_path))
            self._wait_for_it()
            self._new_folders = self._new_folders.pop_all()  # until it is released
        self._thread = threading.Thread(target=self._renew_until_stopped, name="output-lock", daemon=True)
        self._thread.start()

    def _wait_for_it(self) -> None:
        objects = open_objects(self._uri, timeout_s=20.0)
        watch = Watch(self._uri, self._lease_s, self._wait_s, self._report)
        while True:
            started = time.monotonic()
            holder = new_holder(self._run_id, self._lease_s)
            version = _take(objects, holder, watch)
            if version is not None:
                break
            time.sleep(watch.pause_s())
        self._holder, self._version, self._renewed_at = holder, version, started

    def release(self) -> None:
        """Give the lock back, if it is still ours. Does not raise: at worst others wait for the lease."""
        if self._thread is None or self._holder is None:
            return
        self._stop.set()
        self._thread.join()
        self._thread = None
        if self._lost_reason is not None:
            return
        try:
            if not self._discard_alone():
                self._replace(replace(self._holder, released=True))
        except (Changed, OSError) as error:
            logger.warning("the lock of %s was not released: %s", self._uri, type(error).__name__)
        self._new_folders.close()

    def _discard_alone(self) -> bool:
        """Remove a lock beside which nothing was written; whether that was so, and the storage can."""
        objects = open_objects(self._uri, timeout_s=10.0, max_attempts=2)
        try:
            files, folders = objects.list("")
        except OSError:
            return False  # something may be there
        names = [name for name in (*(entry.name for entry in files), *folders) if not name.startswith(".")]
        return names == [LOCK_NAME] and objects.discard(LOCK_NAME, self._version)

    @property
    def lost_reason(self) -> str | None:
        """Why this run must stop writing; ``None`` as long as the lock is known to be ours."""
        if self._lost_reason is None and self._thread is not None and self._is_overdue():
            return self._overdue_reason()
        return self._lost_reason

    def check(self) -> None:
        """Return if the lock is held; no request is made.

        Raises:
            LockLost: it is not.
        """
        if (reason := self.lost_reason) is not None:
            raise LockLost(reason)

    def fence(self) -> Fence:
        """A check for the processes that write."""
        if self._holder is None:
            raise RuntimeError("the lock was not acquired")
        return Fence(self._uri, self._run_id, self._holder.token)

    def _renew_until_stopped(self) -> None:
        wait_s = self._lease_s / 3
        while not self._stop.wait(wait_s):
            try:
                self._renew()
                wait_s = self._lease_s / 3
            except LockLost as lost:
                self._lose(str(lost))
                return
            except Exception as error:  # whatever it is, the thread must live as long as the lease
                if self._is_overdue():
                    self._lose(self._overdue_reason())
                    return
                logger.warning("renewing the lock of %s failed: %s", self._uri, type(error).__name__)
                wait_s = self._lease_s / 12

    def _renew(self) -> None:
        assert self._holder is not None
        started = time.monotonic()
        following = replace(self._holder, heartbeat=self._holder.heartbeat + 1)
        try:
            self._replace(following)
        except Changed:
            self._adopt_or_lose()
            self._replace(following)
        self._holder, self._renewed_at = following, started

    def _replace(self, holder: Holder) -> None:
        # One retry at most: renewing comes again soon, and must not hang longer than the lease.
        objects = open_objects(self._uri, timeout_s=min(10.0, max(0.5, self._lease_s / 6)), max_attempts=2)
        self._version = objects.replace(LOCK_NAME, holder.encode(), self._version)

    def _adopt_or_lose(self) -> None:
        """The file is not the version that we wrote last: an answer of the storage got lost, or the lock did."""
        assert self._holder is not None
        try:
            content, version = open_objects(self._uri, timeout_s=10.0, max_attempts=2).read(LOCK_NAME, MAX_LOCK_BYTES)
        except FileNotFoundError:
            raise LockLost(f"the lock file of {self._uri} was deleted") from None
        found = Holder.decode(content)
        if found is None or found.token != self._holder.token:
            raise LockLost(f"the lock of {self._uri} was taken by {found or 'an unknown run'}")
        self._version = version

    def _is_overdue(self) -> bool:
        return time.monotonic() - self._renewed_at > self._lease_s

    def _overdue_reason(self) -> str:
        return f"the lock of {self._uri} could not be renewed within its lease of {self._lease_s:g} s"

    def _lose(self, reason: str) -> None:
        self._lost_reason = reason
        logger.error("%s; this run must stop", reason)
        if self._on_lost is not None:
            self._on_lost(reason)


def _take(objects: ObjectFolder, holder: Holder, watch: Watch) -> str | None:
    """Try once; the version of our lock file, or ``None`` if it is another's."""
    try:
        content, version = objects.read(LOCK_NAME, MAX_LOCK_BYTES)
    except FileNotFoundError:
        try:
            return objects.create(LOCK_NAME, holder.encode())
        except FileExistsError:
            return None
    if not watch.may_take(Holder.decode(content), version):
        return None
    try:
        return objects.replace(LOCK_NAME, holder.encode(), version)
    except Changed:
        return None
