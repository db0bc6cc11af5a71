"""How many replicas of the model, and what each gets of the cluster."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from ray.autoscaler.sdk import request_resources
from ray.data import ActorPoolStrategy

from pipeline.annotate.config import ResourcesConfig
from pipeline.annotate.plan import CPU_SECONDS_PER_IMAGE
from pipeline.cluster.address import ClusterError
from pipeline.cluster.connect import amount, node_resources
from pipeline.errors import RunError
from pipeline.messages.counts import counted
from pipeline.messages.timing import NowAndThen, duration

logger = logging.getLogger(__name__)

# Fetching fills a node to the last CPU that it may take, and light tasks beside it would wait until all images are
# fetched; so fetch tasks ask for a little less than their share, and light ones fit into what that leaves.
_FETCH_SHARE = 0.99
LIGHT_CPUS = 0.001  # so that eight fit into what a single fetch task leaves
# Ray Data fuses a task stage into an actor stage that asks for exactly the same resources; fetching must stay
# in tasks of its own.
_APART = 0.01
# Fewer leave not much beside one replica and what feeds it.
_MANY_CPUS = 4
# While nodes are waited for: how often they are counted, and how often a line tells of it.
_LOOK_S = 1.0
_SAY_S = 15.0


class NoGpus(RunError):
    """No GPU came in the time that the job waited for them; another try may find some."""


@dataclass(frozen=True)
class Pool:
    """The replicas of the model and what each gets.

    Attributes:
        min_actors, max_actors: equal for a pool of fixed size.
        gpus: of each actor; 0 runs the model on the CPU.
        cpus: of each actor, which Ray reserves for it.
        fetch_cpus: of each task that fetches and decodes.
        initial_actors: those that are started first; there is room for them, unless the pool's size is fixed.
    """

    min_actors: int
    max_actors: int
    gpus: float
    cpus: float
    fetch_cpus: float
    initial_actors: int

    def strategy(self) -> ActorPoolStrategy:
        """Two calls at a time hide the fetching of the next block behind the model's work on this one."""
        return ActorPoolStrategy(
            min_size=self.min_actors,
            max_size=self.max_actors,
            initial_size=self.initial_actors,
            max_concurrent_calls_per_actor=2,
            max_tasks_in_flight_per_actor=4,
        )

    @property
    def max_writes(self) -> int:
        """Files that are encoded and written at a time: two a replica keep up with it, and storage answers slowly."""
        return max(8, 2 * self.max_actors)


def choose_pool(config: ResourcesConfig, to_come: bool = False) -> Pool:
    """How many replicas, and what each gets. Without a setting they take all GPUs of the cluster.

    A pool of fixed size starts all of its replicas at once: those that there is no room for pend, which asks the
    cluster's autoscaler for nodes, and hold nothing up.

    Args:
        to_come: GPUs that a run would wait for, and CPUs beside them, count as if they were there.

    Raises:
        ClusterError: replicas were asked for that this cluster has no room for, now or ever.
        NoGpus: GPUs were waited for, and none came.
    """
    nodes = node_resources()
    needs = _Needs.of(config, nodes)
    slots, cluster_cpus = needs.slots(nodes), sum(node.get("CPU", 0.0) for node in nodes)
    fewest = (config.actor_range or (1, 1))[0]
    if needs.gpus and config.wait_for_gpus_s and to_come:
        slots, cluster_cpus = max(slots, fewest), math.inf
    elif needs.gpus and config.wait_for_gpus_s:
        if not slots:
            raise NoGpus(
                f"no node with {amount(needs.gpus, 'GPU')} has come within {duration(config.wait_for_gpus_s)}: raise "
                "resources.wait_for_gpus_s; whether one can come at all, ray status on the cluster's head says"
            )
        fewest = min(fewest, slots)
    if needs.gpus and slots < fewest:
        there = sum(node.get("GPU", 0.0) for node in nodes)
        wanted = f"{counted(fewest, 'replica')} of {amount(needs.gpus, 'GPU')}"
        raise ClusterError(
            f"{wanted} do not fit on {amount(there, 'GPU')}, which have room for {slots}: lower resources.actors, set "
            "resources.gpus_per_actor to 0 for the CPU, start the GPU nodes first, or let the job wait for them "
            "(resources.wait_for_gpus_s)"
        )
    if cluster_cpus < needs.cpus * fewest + needs.others:
        raise ClusterError(
            f"{counted(fewest, 'replica')} of {amount(needs.cpus, 'CPU')}, and {amount(needs.others, 'CPU')} for "
            f"fetching images, do not fit on {amount(cluster_cpus, 'CPU')}: lower resources.actors, "
            "cpus_per_actor or fetch_cpus_per_task"
        )
    room = max(fewest, needs.room(nodes)) if needs.gpus else fewest
    low, high = config.actor_range or (room, room)
    pool = Pool(low, high, needs.gpus, needs.cpus, needs.fetch_cpus, min(max(low, room), high))
    if not to_come:
        _warn_of_shares(config, pool, cluster_cpus)
    return pool


def _warn_of_shares(config: ResourcesConfig, pool: Pool, cluster_cpus: float) -> None:
    """A dry run knows how fast the replicas are, and tells more."""
    free, gpus = cluster_cpus - pool.cpus * pool.initial_actors, pool.gpus * pool.initial_actors
    if free < gpus:
        logger.warning(
            "%s for %s: fetching, decoding and encoding take some %g s of a core an image, so they feed about %.0f "
            "images/s; faster replicas want more CPU nodes",
            *(amount(free, "CPU"), amount(gpus, "GPU"), CPU_SECONDS_PER_IMAGE, free / CPU_SECONDS_PER_IMAGE),
        )
    if not gpus and config.actor_range is None and config.cpus_per_actor is None and cluster_cpus >= _MANY_CPUS:
        logger.warning(
            "no GPU, and a single replica on one of %s: resources.cpus_per_actor gives it more threads, "
            "resources.actors makes more of them, each with a model of its own in memory",
            amount(cluster_cpus, "CPU"),
        )


@contextmanager
def gpus_waited_for(config: ResourcesConfig) -> Iterator[None]:
    """Ask the cluster's autoscaler for the GPUs of all replicas, until the block ends. It begins when those of the
    fewest are there, and CPUs to feed them, or when the time is over. Where nothing is to be waited for, at once.
    """
    if not config.wait_for_gpus_s:
        yield
        return
    needs = _Needs.of(config, [])
    low, high = config.actor_range or (1, 1)
    request_resources(bundles=[needs.bundle] * high + [{"CPU": math.ceil(needs.others)}])
    try:
        _wait(needs, low, time.monotonic() + config.wait_for_gpus_s)
        yield
    finally:
        with suppress(Exception):  # of a cluster that is gone; a request of Ray Data's has taken its place long since
            request_resources(bundles=[])


def _wait(needs: _Needs, replicas: int, give_up_at: float) -> None:
    say = NowAndThen(_SAY_S)
    while (slots := needs.slots(nodes := node_resources())) < replicas or not needs.fed(nodes, replicas):
        there = f"{slots} of {counted(replicas, 'replica')} {'has' if replicas == 1 else 'have'} room"
        left_s = give_up_at - time.monotonic()
        if left_s <= 0:
            logger.warning("the time to wait for GPUs is over: %s", there)
            return
        if say.is_due():
            logger.info("waiting for GPUs: %s, %s left", there, duration(left_s))
        time.sleep(min(_LOOK_S, left_s))


@dataclass(frozen=True)
class _Needs:
    """What of a cluster is taken.

    Attributes:
        gpus, cpus: of each replica.
        fetch_cpus: of each task that fetches.
        others: CPUs that must be free of replicas, or nothing is fetched.
    """

    gpus: float
    cpus: float
    fetch_cpus: float
    others: float

    @classmethod
    def of(cls, config: ResourcesConfig, nodes: Sequence[Mapping[str, float]]) -> _Needs:
        gpus = config.gpus_per_actor
        if gpus is None:
            gpus = 1.0 if config.wait_for_gpus_s or any(node.get("GPU", 0.0) >= 1 for node in nodes) else 0.0
        cpus = config.cpus_per_actor
        if cpus is None:
            cpus = 0.0 if gpus else 1.0
        fetch_cpus = _FETCH_SHARE * config.fetch_cpus_per_task
        if not gpus and cpus == fetch_cpus:
            cpus -= _APART
        return cls(gpus, cpus, fetch_cpus, config.fetch_cpus_per_task)

    @property
    def bundle(self) -> dict[str, float]:
        """Of a replica on a GPU, as Ray is asked for it."""
        return {"GPU": self.gpus, **({"CPU": self.cpus} if self.cpus else {})}

    def slots(self, nodes: Sequence[Mapping[str, float]]) -> int:
        """Replicas that the GPUs have room for: none gets a part of two GPUs, or GPUs of two nodes."""
        return sum(self._slots(node) for node in nodes)

    def room(self, nodes: Sequence[Mapping[str, float]]) -> int:
        """The same with the CPUs that they take."""
        if not self.cpus:
            return self.slots(nodes)
        cpus = [node.get("CPU", 0.0) for node in nodes]
        placed = sum(min(self._slots(node), int(c / self.cpus)) for node, c in zip(nodes, cpus, strict=True))
        return min(placed, int((sum(cpus) - self.others) / self.cpus))

    def fed(self, nodes: Sequence[Mapping[str, float]], replicas: int) -> bool:
        """Whether there are CPUs enough for so many replicas and what feeds them."""
        return sum(node.get("CPU", 0.0) for node in nodes) >= self.cpus * replicas + self.others

    def _slots(self, node: Mapping[str, float]) -> int:
        return int(node.get("GPU", 0.0)) * int(1 / self.gpus + 1e-6) if self.gpus else 0
