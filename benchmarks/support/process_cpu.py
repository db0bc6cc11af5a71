"""CPU time of a process and of all that it starts, by what they are to Ray."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

import psutil

KINDS = ("driver", "task workers", "replicas", "monitor", "raylet", "gcs", "rest")
_TITLES = {
    "monitor": re.compile(r"ray::\w*Monitor\w*"),
    "replicas": re.compile(r"ray::(\w*MapWorker|MapBatches\((Segment|Annotator))"),
    "task workers": re.compile(r"ray::(MapBatches|IDLE|FileWriter|write|Write|Read|List|Streaming|_|\w+\()"),
    "raylet": re.compile(r"\S*/raylet "),
    "gcs": re.compile(r"\S*/gcs_server "),
}


class Process(NamedTuple):
    """What stays the same of a process."""

    pid: int
    created: float


@dataclass(frozen=True)
class CpuTimes:
    """CPU seconds, user and system, of each process that there is, with its kind."""

    by_process: dict[Process, tuple[str, float]]

    @classmethod
    def of_tree(cls, root: psutil.Process) -> CpuTimes:
        """Of the driver and all below it."""
        found = {}
        for process in [root, *root.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess), process.oneshot():
                times, title = process.cpu_times(), " ".join(process.cmdline())
                kind = next((name for name, pattern in _TITLES.items() if pattern.match(title)), "rest")
                key = Process(process.pid, process.create_time())
                found[key] = ("driver" if process.pid == root.pid else kind, times.user + times.system)
        return cls(found)

    def since(self, before: CpuTimes) -> dict[str, float]:
        """Seconds by kind. Without processes that have started since: what they cost is imports, once."""
        spent = dict.fromkeys(KINDS, 0.0)
        for process in self.by_process.keys() & before.by_process.keys():
            (known, before_s), (kind, cpu_s) = before.by_process[process], self.by_process[process]
            # A replica that idles is titled like any worker: what it was called before or after tells more.
            spent[kind if known in ("task workers", "rest") else known] += cpu_s - before_s
        return spent

    def started_since(self, before: CpuTimes) -> int:
        """Processes that were not there before."""
        return len(self.by_process.keys() - before.by_process.keys())
