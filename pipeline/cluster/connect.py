"""Connecting to Ray, and choosing replicas that fit what is there."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.job_config import JobConfig

from pipeline.cluster.address import Address
from pipeline.cluster.quiet import RaysWords, apart
from pipeline.cluster.signals import kept
from pipeline.errors import RunError, UserError
from pipeline.messages.counts import counted
from pipeline.storage.uris import UriText

logger = logging.getLogger(__name__)

_OPTIONS: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
_PAUSE_S = 2.0
USES_RAY = "uses-ray-"  # so begin the names of our threads that do
# And so those of Ray Data's, for which it waits two seconds itself: too little for a machine that is busy.
_DATA_THREADS = ("StreamingExecutor", "ray-data-")
_THREADS_S = 60.0


class RayNotStarted(RunError):
    """Ray did not start on this machine, most likely not in time; another try may succeed."""


@contextmanager
def connect(address: UriText | None) -> Iterator[None]:
    """Ray for the duration: the cluster at ``address`` or ``RAY_ADDRESS``, else one in this process.

    A Ray that is connected already is used and left as it is.

    Raises:
        ClusterError: no cluster answers at the address, or it takes no job from here.
        RayNotStarted: there is no address, and Ray does not start here, tried twice.
    """
    if ray.is_initialized():
        yield
        return
    target = Address.find(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    with apart() as words:
        try:
            with kept():
                if target is not None and target.text.secret_text != "local":
                    _join(target)
                else:
                    _start()
            with _connected(words):
                there = cluster_line(describe_cluster())
                logger.info("Ray %s at %s: %s", ray.__version__, target or "this machine", there)
                yield
        except Exception as error:
            if words.path is not None and not isinstance(error, UserError):
                words.kept = True
                logger.info("what Ray said meanwhile is in %s", words.path)
            raise


@contextmanager
def _connected(words: RaysWords) -> Iterator[None]:
    try:
        if (node := ray._private.worker._global_node) is not None:  # which Ray's client has none of
            words.move_to(Path(node.get_logs_dir_path()))
        logger.debug("what Ray says goes to %s", words.path)
        yield
    finally:
        try:
            wait_for_threads()
        finally:
            ray.shutdown()


def wait_for_threads() -> None:
    """For those that are ending and use Ray. One that reaches for Ray while that shuts down ends the process, with exit
    code 1 and often no word, and then nobody releases locks.
    """
    give_up_at = time.monotonic() + _THREADS_S
    for thread in threading.enumerate():
        if thread.name.startswith((USES_RAY, *_DATA_THREADS)):
            thread.join(max(0.0, give_up_at - time.monotonic()))


def check_address(address: UriText | None) -> None:
    """Return if there is no address, or a cluster answers there: what `connect` would stumble over, within seconds.

    Raises:
        ClusterError: none does.
    """
    target = None if ray.is_initialized() else Address.find(address)
    if target is not None:
        target.check()


def _join(target: Address) -> None:
    target.check()
    # The client makes a job config of its own, and sends what it is given as JSON, which this is not.
    job_config: Any = None if target.is_of_clients else _job_config()
    try:
        ray.init(address=target.text.secret_text, job_config=job_config, **_OPTIONS)
    except Exception as error:
        # Other versions, most often; a head that answers, though no node of the cluster runs on this machine.
        raise target.refused(_one_line(error)) from error


def _start() -> None:
    """Twice: on a machine that does much else, Ray's processes may take longer than Ray waits for them."""
    try:
        ray.init(address="local", include_dashboard=False, job_config=_job_config(), **_OPTIONS)
    except Exception as error:  # a node that does not start in time is a plain Exception
        logger.warning("Ray did not start: %s; trying once more", _one_line(error))
    else:
        return
    ray.shutdown()
    time.sleep(_PAUSE_S)
    try:
        ray.init(address="local", include_dashboard=False, job_config=_job_config(), **_OPTIONS)
    except Exception as error:
        ray.shutdown()
        raise RayNotStarted(
            f"Ray does not start on this machine: {_one_line(error)}; RAY_raylet_start_wait_time_s=120 in the "
            "environment gives it more time than 30 s"
        ) from error


def _job_config() -> JobConfig:
    """Ray puts the driver's folder first on the path of its workers. That is right in a checkout, where this package
    comes from; in any other folder a package of the user's that is called ``pipeline`` would take our place there.

    Ray leaves it out for jobs of its client alone, and makes no other difference between those and this one, which
    sends no modules along.
    """
    root = Path(__file__).resolve().parents[2]
    return JobConfig(_client_job=Path.cwd().resolve() != root)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def node_resources() -> list[dict[str, float]]:
    """What Ray may deal out on each node that is alive, by its name: ``CPU``, ``GPU`` and others."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def describe_cluster() -> dict[str, Any]:
    """Nodes, CPUs, GPUs with their kinds, and memory of the object store."""
    resources = ray.cluster_resources()
    kinds = sorted(name.split(":", 1)[1] for name in resources if name.startswith("accelerator_type:"))
    return {
        "nodes": sum(1 for node in ray.nodes() if node["Alive"]),
        "cpus": resources.get("CPU", 0.0),
        "gpus": resources.get("GPU", 0.0),
        "gpu_kinds": kinds,
        "object_store_gib": round(resources.get("object_store_memory", 0.0) / 2**30, 2),
        "ray": ray.__version__,
    }


def cluster_line(cluster: Mapping[str, Any]) -> str:
    """What `describe_cluster` gave, for people: ``1 node, 2 CPUs, 8 GPUs (H100), 0.5 GiB object store``."""
    kinds = f" ({', '.join(cluster['gpu_kinds'])})" if cluster["gpu_kinds"] else ""
    cpus, gpus = amount(cluster["cpus"], "CPU"), amount(cluster["gpus"], "GPU")
    return (
        f"{counted(cluster['nodes'], 'node')}, {cpus}, {gpus}{kinds}, {cluster['object_store_gib']:g} GiB object store"
    )


def amount(number: float, noun: str) -> str:
    """So many of what Ray deals out in parts as well: ``1 CPU``, ``0.8 CPUs``."""
    return counted(int(number), noun) if number == int(number) else f"{number:g} {noun}s"
