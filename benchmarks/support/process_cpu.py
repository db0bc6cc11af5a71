"""CPU time of a process and of all that it starts, by kind: Ray's driver, its workers, its servers."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import suppress

import psutil


class ProcessCpu:
    """The books of a tree of processes, those that have ended included; Linux keeps no sum over them that Ray fills.

    Args:
        pid: of the process at the root, the driver.

    Attributes:
        last_start: when a process was first seen, on the monotonic clock.
    """

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)
        self._seen: dict[psutil.Process, tuple[str, float]] = {}
        self.last_start = time.monotonic()

    def read(self) -> Counter[str]:
        """CPU seconds so far, user and system, by kind of process. Of one that ended, as when it was last looked at."""
        for process in self._processes():
            with suppress(psutil.Error):
                times = process.cpu_times()
                if process not in self._seen:
                    self.last_start = time.monotonic()
                self._seen[process] = self._kind(process), times.user + times.system
        seconds: Counter[str] = Counter()
        for kind, spent in self._seen.values():
            seconds[kind] += spent
        return seconds

    def kill(self) -> None:
        """End all of them."""
        processes = self._processes()
        for process in {*processes, *self._seen}:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes, timeout=10)

    def _processes(self) -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            return [self._root, *self._root.children(recursive=True)]
        return []

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
