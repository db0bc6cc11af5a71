"""Connecting to Ray, and choosing replicas that fit what is there."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from pipeline.cluster.signals import kept
from pipeline.errors import RunError, UserError
from pipeline.storage.uris import UriText

logger = logging.getLogger(__name__)


class ClusterError(UserError):
    """The cluster cannot run this job; the message says what is missing."""


class RayNotStarted(RunError):
    """Ray did not start on this machine, most likely not in time; another try may succeed."""


@contextmanager
def connect(address: UriText | None) -> Iterator[None]:
    """Ray for the duration: the cluster at ``address`` or ``RAY_ADDRESS``, else one in this process.

    A Ray that is connected already is used and left as it is.

    Raises:
        ClusterError: no cluster answers at the address.
        RayNotStarted: there is no address, and Ray does not start here.
    """
    if ray.is_initialized():
        yield
        return
    from_environment = os.environ.get("RAY_ADDRESS")
    target = address or (UriText(from_environment) if from_environment else None)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        with kept():
            ray.init(address=target.secret_text, **options) if target else ray.init(include_dashboard=False, **options)
    except Exception as error:  # a node that does not start in time is a plain Exception
        if target:
            raise ClusterError(f"no Ray cluster answers at {target}: {target.hide_in(str(error))}") from error
        raise RayNotStarted(f"Ray does not start on this machine: {error}") from error
    try:
        logger.info("Ray %s at %s: %s", ray.__version__, target or "this machine", describe_cluster())
        yield
    finally:
        ray.shutdown()


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
