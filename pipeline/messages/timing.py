"""Time in messages: durations, and lines that come now and then."""

from __future__ import annotations

import time

# In front of a line on a terminal: it takes the place of one that was left without an end.
REPLACES_LINE = "\r\033[K"


def duration(seconds: float) -> str:
    """``3 h 05 min``, ``12 min 30 s`` or ``8.1 s``."""
    if seconds >= 3600:
        return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02d} min"
    if seconds >= 60:
        return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
    return f"{seconds:.1f} s"


class NowAndThen:
    """Tells whether it is time for another line, where each step could write one.

    Args:
        interval_s: between two lines, at least.
        at_once: the first question is answered with yes; otherwise the first interval begins now.
    """

    def __init__(self, interval_s: float, at_once: bool = True) -> None:
        self._interval_s = interval_s
        self._last: float | None = None if at_once else time.monotonic()

    def is_due(self) -> bool:
        """Whether the interval is over; if so the next one begins."""
        now = time.monotonic()
        if self._last is not None and now - self._last < self._interval_s:
            return False
        self._last = now
        return True
