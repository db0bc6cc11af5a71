"""A Ray cluster of several nodes on this machine, in a process of its own: its nodes come and go on request.

The process started here (``python -m testing.ray_nodes``) says the cluster's address on its standard
output and reads from its standard input which node to replace by a new one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

NUM_NODES = 2
CPUS_PER_NODE = 2
# A node that is gone is missed after three seconds.
_HEALTH = {"health_check_period_ms": 1000, "health_check_failure_threshold": 3}


class RayNodes:
    """The cluster, from outside.

    Attributes:
        address: of the head, as ``RAY_ADDRESS`` takes it.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.address = self._answer()

    def replace(self, index: int) -> None:
        """Kill a node's processes and start another node; returns when that is there."""
        assert self._process.stdin is not None
        print(index, file=self._process.stdin, flush=True)
        self._answer()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        while line := self._process.stdout.readline():
            if line.startswith("> "):
                return line[2:].strip()
        raise RuntimeError("the cluster's process ended")


@contextmanager
def ray_nodes(log: Path) -> Iterator[RayNodes]:
    """Start a head without CPUs and `NUM_NODES` nodes; remove them, and all that they started, afterwards."""
    # A folder of its own: a cluster writes its address into Ray's folder, where others would find it.
    folder = tempfile.mkdtemp(prefix="mf")
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": folder, "RAY_worker_niceness": "0"}
    environment.pop("RAY_ADDRESS", None)
    with open(log, "ab") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "testing.ray_nodes"],
            cwd=Path(__file__).resolve().parents[1],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    try:
        yield RayNodes(process)
    finally:
        started = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.kill()
        process.wait()
        for child in started:
            if child.is_running():
                child.kill()
        psutil.wait_procs(started, timeout=10)
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    """The process itself; runs until its standard input ends."""
    from ray.cluster_utils import Cluster  # slow to import, and only needed here

    head = {"num_cpus": 0, "num_gpus": 0, "include_dashboard": False, "_system_config": _HEALTH}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    nodes = [cluster.add_node(num_cpus=CPUS_PER_NODE, num_gpus=0) for _ in range(NUM_NODES)]
    print(f"> {cluster.address}", flush=True)
    for line in sys.stdin:
        index = int(line)
        cluster.remove_node(nodes[index], allow_graceful=False)
        nodes[index] = cluster.add_node(num_cpus=CPUS_PER_NODE, num_gpus=0)
        print("> replaced", flush=True)


if __name__ == "__main__":
    main()
