"""A Ray cluster of several nodes on this machine, in a process of its own: its nodes come and go on request.

The process started here (``python -m testing.ray_nodes``) says the cluster's address on its standard
output and reads from its standard input, a line of JSON each, what to do to which node.

With ``scaled`` the nodes are Ray's autoscaler's instead, with the node provider that Ray's own tests use. Not
`ray.cluster_utils.AutoscalingCluster`: it reads a file that is in no wheel of Ray, and ends every Ray on the machine.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import psutil

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

NUM_NODES = 2
CPUS_PER_NODE = 2
# A node that is gone is missed after three seconds.
_HEALTH = {"health_check_period_ms": 1000, "health_check_failure_threshold": 3}
_HEAD: dict[str, Any] = {"num_cpus": 0, "num_gpus": 0, "include_dashboard": False, "_system_config": _HEALTH}
# The autoscaler misses a node of its own as early, and looks as often as Ray's own tests have it look.
_SCALER = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1", "AUTOSCALER_HEARTBEAT_TIMEOUT_S": "5"}
_SCALED_TYPE = "scaled"
_TRIES = 4
# A real cluster sets itself up with these; the autoscaler wants to see them all.
_COMMANDS = (
    *("cluster_synced_files", "file_mounts_sync_continuously", "initialization_commands", "setup_commands"),
    *("head_setup_commands", "worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands"),
)

Started = TypeVar("Started")


class RayNodes:
    """The cluster, from outside.

    Attributes:
        address: of the head, as ``RAY_ADDRESS`` takes it.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.address = self._answer()

    def add(self, cpus: int = CPUS_PER_NODE, gpus: int = 0) -> None:
        """Start a node; returns when it is there. It has the next index."""
        self._do("add", cpus, gpus)

    def remove(self, index: int) -> None:
        """Kill a node's processes, without warning."""
        self._do("remove", index)

    def replace(self, index: int) -> None:
        """Kill a node's processes and start another node; returns when that is there, with the same index."""
        self._do("replace", index)

    def drain(self, index: int, deadline_s: float) -> None:
        """Warn of the end of a node, as a cloud does of the end of a spot instance; returns when that has come."""
        self._do("drain", index, deadline_s)

    def preempt(self) -> None:
        """Kill the oldest node that the autoscaler has started, without warning. It starts none in its place: one that
        it did not see set up by itself it believes to be on its way for ever."""
        self._do("preempt")

    def _do(self, *what: Any) -> None:
        assert self._process.stdin is not None
        print(json.dumps(what), file=self._process.stdin, flush=True)
        self._answer()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        while line := self._process.stdout.readline():
            if line.startswith("> "):
                return line[2:].strip()
        raise RuntimeError("the cluster's process ended")


@contextmanager
def ray_nodes(
    log: Path,
    num_nodes: int = NUM_NODES,
    cpus: int = CPUS_PER_NODE,
    gpus: int = 0,
    scaled: int = 0,
    environment: Mapping[str, str] | None = None,
) -> Iterator[RayNodes]:
    """Start a head without CPUs and further nodes; remove them, and all that they started, afterwards.

    Args:
        log: takes what the cluster says.
        num_nodes: at the start.
        cpus, gpus: of a node; the GPUs are numbers, there need not be any.
        scaled: most nodes that the autoscaler may have, on request; with them ``num_nodes`` are none.
        environment: further variables of all nodes.
    """
    # A folder of its own: a cluster writes its address into Ray's folder, where others would find it.
    folder = tempfile.mkdtemp(prefix="mf")
    variables = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": folder, "RAY_worker_niceness": "0"}
    variables |= environment or {}
    variables.pop("RAY_ADDRESS", None)
    shape = [0 if scaled else num_nodes, cpus, gpus, scaled]
    with open(log, "ab") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "testing.ray_nodes", *map(str, shape)],
            cwd=Path(__file__).resolve().parents[1],
            env=variables,
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


class _Nodes:
    """Inside the process: what is asked for is done here.

    Args:
        num_nodes, cpus, gpus, scaled: those of `ray_nodes`.
    """

    def __init__(self, num_nodes: int, cpus: int, gpus: int, scaled: int) -> None:
        from ray.cluster_utils import Cluster  # slow to import, and only needed here

        self._shape = {"num_cpus": cpus, "num_gpus": gpus}
        self.cluster = _patiently(
            lambda: _scaled_cluster(self._shape, scaled) if scaled else Cluster(True, head_node_args=_HEAD)
        )
        self._nodes = [self._started(self._shape) for _ in range(num_nodes)]

    def add(self, cpus: int, gpus: int) -> None:
        self._nodes.append(self._started({"num_cpus": cpus, "num_gpus": gpus}))

    def remove(self, index: int) -> None:
        self.cluster.remove_node(self._nodes[index], allow_graceful=False)

    def replace(self, index: int) -> None:
        self.remove(index)
        self._nodes[index] = self._started(self._shape)

    def drain(self, index: int, deadline_s: float) -> None:
        # What ``ray drain-node`` does, without its seconds of start-up.
        import ray._raylet as raylet
        from ray.core.generated import autoscaler_pb2

        deadline_ms = round((time.time() + deadline_s) * 1000)
        client: Any = raylet.GcsClient(address=self.cluster.address)  # type: ignore[attr-defined]
        reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")  # type: ignore[attr-defined]
        accepted, why = client.drain_node(self._nodes[index].node_id, reason, "test", deadline_ms)
        if not accepted:
            raise RuntimeError(f"the node is not drained: {why}")
        time.sleep(deadline_s)

    def _started(self, shape: Mapping[str, Any]) -> Any:
        return _patiently(partial(self.cluster.add_node, **shape))

    def preempt(self) -> None:
        children = psutil.Process().children(recursive=True)
        # Nobody waits for those of the autoscaler that were killed.
        started = [p for p in children if p.name() == "raylet" and p.status() != psutil.STATUS_ZOMBIE]
        head_node: Any = self.cluster.head_node
        head = head_node.all_processes["raylet"][0].process.pid
        oldest = min((raylet for raylet in started if raylet.pid != head), key=lambda raylet: raylet.create_time())
        with suppress(psutil.NoSuchProcess):
            for process in [oldest, *oldest.children(recursive=True)]:
                process.kill()


def _patiently(start: Callable[[], Started]) -> Started:
    """Try several times: on a machine that does much else, nodes take longer than the half minute that they get."""
    for _ in range(_TRIES - 1):
        with suppress(Exception):  # a plain one
            return start()
    return start()


def _scaled_cluster(shape: Mapping[str, int], most: int) -> Cluster:
    """A head alone, with an autoscaler that starts nodes as processes."""
    from ray._private.services import get_node_ip_address
    from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FAKE_HEAD_NODE_TYPE
    from ray.cluster_utils import Cluster

    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    resources = {"CPU": shape["num_cpus"], "GPU": shape["num_gpus"], "object_store_memory": 150 << 20}
    config = {
        "cluster_name": "test",
        "max_workers": most,
        "idle_timeout_minutes": 60,
        "upscaling_speed": 100.0,
        "provider": {
            "type": "fake_multinode",
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "gcs_address": f"{get_node_ip_address()}:{port}",
        },
        "available_node_types": {
            # Under another name the provider's head is not found, and one node after the other is started for it.
            FAKE_HEAD_NODE_TYPE: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            _SCALED_TYPE: {"resources": resources, "node_config": {}, "min_workers": 0, "max_workers": most},
        },
        "head_node_type": FAKE_HEAD_NODE_TYPE,
        **{key: {} for key in ("auth", "docker", "file_mounts")},
        **{key: [] for key in _COMMANDS},
    }
    file = Path(os.environ["RAY_TMPDIR"], "autoscaler.json")
    file.write_text(json.dumps(config))
    os.environ.update(_SCALER, RAY_OVERRIDE_NODE_ID_FOR_TESTING=FAKE_HEAD_NODE_ID)
    try:
        return Cluster(True, head_node_args={**_HEAD, "gcs_server_port": port, "autoscaling_config": str(file)})
    finally:
        del os.environ["RAY_OVERRIDE_NODE_ID_FOR_TESTING"]  # which a node that is added would take over


def main() -> None:
    """The process itself; runs until its standard input ends."""
    nodes = _Nodes(*map(int, sys.argv[1:]))
    print(f"> {nodes.cluster.address}", flush=True)
    for line in sys.stdin:
        what, *arguments = json.loads(line)
        getattr(nodes, what)(*arguments)
        print("> done", flush=True)


if __name__ == "__main__":
    main()
