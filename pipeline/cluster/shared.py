"""Whether the nodes of a cluster see the same local paths, asked of each of them before work is given out."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Mapping

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.cluster.address import ClusterError
from pipeline.storage.uris import Uri

logger = logging.getLogger(__name__)

_WAIT_S = 60.0  # for a node's first process


def check_shared(writes: Mapping[str, Uri | None], reads: Mapping[str, Uri | None]) -> None:
    """Return if every node that can work sees the local paths as this machine does. Nothing happens on a single node.

    Nodes that join later are not asked.

    Args:
        writes: folders that tasks write to, by their settings; an empty file is put there for the moment.
        reads: paths that tasks read.

    Raises:
        ClusterError: a node does not see what is here, or may not write there.
        OSError: this machine may not write there.
    """
    folders, files = _local(writes), _local(reads)
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) < 2 or not (folders or files):
        return
    probes = [(name, path, False) for name, path in files.items() if os.path.exists(path)]
    made: list[str] = []
    try:
        for name, folder in folders.items():
            os.makedirs(folder, exist_ok=True)
            handle, path = tempfile.mkstemp(prefix=".seen-by-all-", dir=folder)
            os.close(handle)
            made.append(path)
            probes.append((name, path, True))
        for node in nodes:
            if not node["Resources"].get("CPU"):
                continue  # a head that only leads
            _ask(node["NodeID"], node["NodeManagerAddress"], probes, {**folders, **files})
    finally:
        for path in made:
            os.unlink(path)


def _ask(node: str, address: str, probes: list[tuple[str, str, bool]], paths: Mapping[str, str]) -> None:
    strategy = NodeAffinitySchedulingStrategy(node, soft=False)
    try:
        lacks = ray.get(
            ray.remote(lacking).options(num_cpus=0, scheduling_strategy=strategy).remote(probes), timeout=_WAIT_S
        )
    except ray.exceptions.RayError as error:
        logger.warning("node %s could not be asked about %s: %s", address, ", ".join(paths), type(error).__name__)
        return
    if lacks:
        name, reason = next(iter(lacks.items()))
        raise ClusterError(
            f"{name}: node {address} of the cluster {reason} {paths[name]}, a path of this machine: give a folder that "
            "all nodes share, or an object store"
        )


def lacking(probes: list[tuple[str, str, bool]]) -> dict[str, str]:
    """On a node: the settings whose path it does not have, and what of it.

    Args:
        probes: setting, path, and whether its folder is written to.
    """
    lacks = {}
    for name, path, is_written in probes:
        if not os.path.exists(path):
            lacks[name] = "does not see"
        elif is_written and not os.access(os.path.dirname(path), os.W_OK):
            lacks[name] = "may not write to"
    return lacks


def _local(places: Mapping[str, Uri | None]) -> dict[str, str]:
    return {name: uri.local_path for name, uri in places.items() if uri is not None and uri.local_path is not None}
