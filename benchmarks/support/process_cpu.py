"""CPU time of a process and of all that it starts, by kind: Ray's driver, its workers, its servers."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil

_INTERVAL_S = 0.5


class ProcessCpu:
    """The books of one process tree, those that have ended included; Linux keeps no sum over them that Ray fills.

    Args:
        pid: of the process at the root, the driver.
    """

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)
        self._seen: dict[psutil.Process, tuple[str, float]] = {}
        self._lock = threading.Lock()

    def read(self) -> Counter[str]:
        """CPU seconds so far, user and system, by kind of process. Of one that ended, as when it was last looked at."""
        with self._lock:
            with suppress(psutil.NoSuchProcess):
                for process in [self._root, *self._root.children(recursive=True)]:
                    with suppress(psutil.Error):
                        times = process.cpu_times()
                        self._seen[process] = self._kind(process), times.user + times.system
            seconds: Counter[str] = Counter()
            for kind, spent in self._seen.values():
                seconds[kind] += spent
            return seconds

    @contextmanager
    def watched(self) -> Iterator[Counter[str]]:
        """What is spent while the block runs, filled when it ends. Looks often, lest somebody ends unseen."""
        over, spent = threading.Event(), Counter[str]()

        def loop() -> None:
            while not over.wait(_INTERVAL_S):
                self.read()

        before = self.read()
        thread = threading.Thread(target=loop, name="process-cpu", daemon=True)
        thread.start()
        try:
            yield spent
        finally:
            over.set()
            thread.join()
            spent.update(self.read())
            spent.subtract(before)

    def _kind(self, process: psutil.Process) -> str:
        if process == self._root:
            return "driver"
        title = " ".join(process.cmdline())
        if not title:  # about to end
            return self._seen.get(process, ("other", 0.0))[0]
        if "gcs_server" in title or "raylet/raylet" in title:
            return "servers"
        if title.startswith("ray::") and "Agent" not in title:
            name = title.removeprefix("ray::")
            return "monitor" if name.startswith("RunMonitor") else "replica" if "MapWorker" in name else "tasks"
        return "other"
