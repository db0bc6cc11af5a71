"""How many replicas of the model, and what each gets of the cluster."""

from __future__ import annotations

from dataclasses import dataclass

import ray
from ray.data import ActorPoolStrategy

from pipeline.annotate.config import ResourcesConfig
from pipeline.cluster.address import ClusterError
from pipeline.cluster.connect import amount
from pipeline.messages.counts import counted

# Ray Data repartitions blocks in tasks of one CPU, whatever the stages around it ask for. Where replicas leave less
# than that free, nothing ever moves.
_REPARTITION_CPUS = 1.0
# Fetching fills a node to the last CPU that it may take, and light tasks beside it would wait until all images are
# fetched; so fetch tasks ask for a little less than their share, and light ones fit into what that leaves.
_FETCH_SHARE = 0.99
LIGHT_CPUS = 0.002
# Ray Data fuses a task stage into an actor stage that asks for exactly the same resources; fetching must stay
# in tasks of its own.
_APART = 0.01


@dataclass(frozen=True)
class Pool:
    """The replicas of the model and what each gets.

    Attributes:
        min_actors, max_actors: equal for a pool of fixed size.
        gpus: of each actor; 0 runs the model on the CPU.
        cpus: of each actor, which Ray reserves for it.
        fetch_cpus: of each task that fetches and decodes.
    """

    min_actors: int
    max_actors: int
    gpus: float
    cpus: float
    fetch_cpus: float

    def strategy(self) -> ActorPoolStrategy:
        """Two calls at a time hide the fetching of the next block behind the model's work on this one."""
        low, high = (None, None) if self.min_actors == self.max_actors else (self.min_actors, self.max_actors)
        return ActorPoolStrategy(
            size=self.min_actors if low is None else None,
            min_size=low,
            max_size=high,
            max_concurrent_calls_per_actor=2,
            max_tasks_in_flight_per_actor=4,
        )

    @property
    def max_writes(self) -> int:
        """Files that are encoded and written at a time: two a replica keep up with it, and storage answers slowly."""
        return max(8, 2 * self.max_actors)


def choose_pool(config: ResourcesConfig) -> Pool:
    """How many replicas, and what each gets.

    Raises:
        ClusterError: replicas were asked for that this cluster has no room for, now or ever.
    """
    resources = ray.cluster_resources()
    cluster_gpus, cluster_cpus = resources.get("GPU", 0.0), resources.get("CPU", 0.0)
    gpus = config.gpus_per_actor
    if gpus is None:
        gpus = 1.0 if cluster_gpus >= 1 else 0.0
    low, high = config.actor_range
    if cluster_gpus < gpus * low:
        needed = f"{counted(low, 'replica')} of {amount(gpus, 'GPU')}: that takes {amount(gpus * low, 'GPU')}"
        raise ClusterError(
            f"{needed}, and the cluster has {cluster_gpus:g}: lower resources.actors, set resources.gpus_per_actor to "
            "0 for the CPU, or start the GPU nodes first"
        )
    cpus = config.cpus_per_actor
    if cpus is None:
        cpus = 0.0 if gpus else 1.0
    fetch_cpus = _FETCH_SHARE * config.fetch_cpus_per_task
    if not gpus and cpus == fetch_cpus:
        cpus -= _APART
    others = max(config.fetch_cpus_per_task, _REPARTITION_CPUS)
    if cluster_cpus < cpus * low + others:
        raise ClusterError(
            f"{counted(low, 'replica')} of {amount(cpus, 'CPU')}, and {amount(others, 'CPU')} for fetching and moving "
            f"images, do not fit on {amount(cluster_cpus, 'CPU')}: lower resources.actors, cpus_per_actor or "
            "fetch_cpus_per_task"
        )
    return Pool(low, high, gpus, cpus, fetch_cpus)
