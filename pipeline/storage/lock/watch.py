"""Watching a lock that another run holds: whether that run lives, and when its lock may be taken."""

from __future__ import annotations

import time
from collections.abc import Callable

from pipeline.errors import RunError
from pipeline.messages.timing import NowAndThen
from pipeline.storage.lock.holder import LOCK_NAME, Holder, is_dead
from pipeline.storage.uris import Uri

REPORT_EVERY_S = 30.0


class LockHeld(RunError):
    """Another run writes this output; the message says which."""


class Watch:
    """Decides when a lock that another run holds may be taken, from nothing but looking at it again and again.

    Args:
        uri: of the output folder, for messages.
        own_lease_s: how long to watch a lock file that does not tell its lease.
        wait_s: how long to wait for a living run; ``None``: only until it is known whether it lives.
        report: takes a line for people while waiting.
    """

    def __init__(self, uri: Uri, own_lease_s: float, wait_s: float | None, report: Callable[[str], None]) -> None:
        self._uri = uri
        self._own_lease_s = own_lease_s
        self._wait_s = wait_s
        self._report = report
        self._began_at = time.monotonic()
        self._line = NowAndThen(REPORT_EVERY_S)
        self._seen: tuple[str, str] | None = None
        self._seen_at = 0.0
        self._watched_lease_s = own_lease_s

    def pause_s(self) -> float:
        """How long to wait before the next look: many looks a lease, and none much later than ``wait_s``."""
        pause_s = min(2.0, self._watched_lease_s / 10)
        if self._wait_s is not None:
            pause_s = min(pause_s, self._began_at + self._wait_s - time.monotonic())
        return max(0.02, pause_s)

    def may_take(self, holder: Holder | None, version: str) -> bool:
        """Look at the lock file.

        Args:
            holder: what it says; ``None`` if that makes no sense.
            version: changes whenever the file does.

        Raises:
            LockHeld: there is no point in waiting any longer.
        """
        now = time.monotonic()
        if holder is not None and holder.released:
            return True
        if holder is not None and is_dead(holder):
            self._report(f"{self._uri} was left behind by {holder}, which is dead; taking its lock")
            return True
        # An unreadable file is watched like any other, with our own lease for want of a better.
        token, lease_s = (holder.token, holder.lease_s) if holder else ("", self._own_lease_s)
        self._watched_lease_s = lease_s
        if self._seen != (token, version):
            lives = self._seen is not None and self._seen[0] == token
            self._seen, self._seen_at = (token, version), now
            if lives and self._wait_s is None:
                raise self._held(holder)
        elif now - self._seen_at > lease_s:
            self._report(f"{self._uri}: no sign of life for {lease_s:g} s of {_who(holder)}; taking its lock")
            return True
        if self._wait_s is not None and now - self._began_at >= self._wait_s:
            raise self._held(holder)
        self._say_so(holder, lease_s, now)
        return False

    def _held(self, holder: Holder | None) -> LockHeld:
        return LockHeld(
            f"{self._uri} is being written by {_who(holder)}. Wait for that run, stop it, or write to "
            f"another output. If it is dead for certain, {LOCK_NAME} may be deleted."
        )

    def _say_so(self, holder: Holder | None, lease_s: float, now: float) -> None:
        if self._line.is_due():
            left_s = max(0.0, lease_s - (now - self._seen_at))
            self._report(f"{self._uri} is held by {_who(holder)}; waiting for its lease, {left_s:.0f} s if it is dead")


def _who(holder: Holder | None) -> str:
    return str(holder) if holder else "an unknown run (its lock file cannot be read)"
