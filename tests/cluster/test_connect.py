"""Replicas that fit the cluster, and how Ray is found."""

from __future__ import annotations

from typing import Any

import pytest
import ray

from pipeline.annotate.config import ResourcesConfig
from pipeline.annotate.pool import Pool, choose_pool
from pipeline.cluster.connect import ClusterError, connect
from pipeline.storage.uris import UriText

LAPTOP = {"CPU": 8.0}
GPU_BOX = {"CPU": 16.0, "GPU": 1.0}
CLUSTER = {"CPU": 256.0, "GPU": 16.0}


@pytest.mark.parametrize(
    ("cluster", "settings", "expected"),
    [
        pytest.param(LAPTOP, {}, Pool(1, 1, 0.0, 1.0, 0.99), id="laptop"),
        pytest.param(
            LAPTOP, {"actors": 2, "cpus_per_actor": 3.0}, Pool(2, 2, 0.0, 3.0, 0.99), id="laptop, two replicas"
        ),
        pytest.param(LAPTOP, {"cpus_per_actor": 0.0}, Pool(1, 1, 0.0, 0.0, 0.99), id="laptop, nothing reserved"),
        pytest.param(
            LAPTOP,
            {"cpus_per_actor": 2.0, "fetch_cpus_per_task": 2.0},
            Pool(1, 1, 0.0, 2.0, 1.98),
            id="kept apart from fetch",
        ),
        pytest.param(LAPTOP, {"fetch_cpus_per_task": 0.5}, Pool(1, 1, 0.0, 1.0, 0.495), id="fetch takes less anyway"),
        pytest.param(LAPTOP, {"gpus_per_actor": 0.0, "actors": 7}, Pool(7, 7, 0.0, 1.0, 0.99), id="as many as fit"),
        pytest.param({"CPU": 2.0}, {}, Pool(1, 1, 0.0, 1.0, 0.99), id="two cores"),
        pytest.param(GPU_BOX, {}, Pool(1, 1, 1.0, 0.0, 0.99), id="GPU box"),
        pytest.param(GPU_BOX, {"gpus_per_actor": 0.0}, Pool(1, 1, 0.0, 1.0, 0.99), id="GPU box, on the CPU"),
        pytest.param(GPU_BOX, {"gpus_per_actor": 0.5, "actors": 2}, Pool(2, 2, 0.5, 0.0, 0.99), id="two share a GPU"),
        pytest.param(GPU_BOX, {"cpus_per_actor": 2.0}, Pool(1, 1, 1.0, 2.0, 0.99), id="CPUs beside the GPU"),
        pytest.param(CLUSTER, {"actors": 16}, Pool(16, 16, 1.0, 0.0, 0.99), id="whole cluster"),
        pytest.param(CLUSTER, {"min_actors": 2, "max_actors": 64}, Pool(2, 64, 1.0, 0.0, 0.99), id="may grow beyond"),
        pytest.param(CLUSTER, {"min_actors": 3, "max_actors": 3}, Pool(3, 3, 1.0, 0.0, 0.99), id="range of one"),
        pytest.param({"CPU": 8.0, "GPU": 0.5}, {}, Pool(1, 1, 0.0, 1.0, 0.99), id="less than a GPU is none"),
    ],
)
def test_pool(
    monkeypatch: pytest.MonkeyPatch, cluster: dict[str, float], settings: dict[str, Any], expected: Pool
) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: cluster)
    assert choose_pool(ResourcesConfig(**settings)) == expected


@pytest.mark.parametrize(
    ("cluster", "settings", "message"),
    [
        pytest.param(LAPTOP, {"gpus_per_actor": 1.0}, "need 1 GPUs and the cluster has 0", id="no GPU"),
        pytest.param(GPU_BOX, {"actors": 2}, "2 replicas of 1 GPU need 2 GPUs", id="one GPU too few"),
        pytest.param(GPU_BOX, {"actors": 3, "gpus_per_actor": 0.5}, "need 1.5 GPUs", id="shares too many"),
        pytest.param(CLUSTER, {"min_actors": 17, "max_actors": 20}, "need 17 GPUs", id="fewest do not fit"),
        pytest.param(LAPTOP, {"actors": 8}, "8 replicas of 1 CPUs", id="no core left to fetch"),
        pytest.param({"CPU": 1.0}, {}, "do not fit on 1 CPUs", id="one core"),
        pytest.param(
            {"CPU": 2.0},
            {"actors": 2, "cpus_per_actor": 0.8, "fetch_cpus_per_task": 0.4},
            "2 replicas of 0.8 CPUs and 1 for fetching and moving",
            id="no core left to move blocks",
        ),
        pytest.param(GPU_BOX, {"cpus_per_actor": 64.0}, "1 replicas of 64 CPUs", id="all cores beside the GPU"),
        pytest.param({}, {}, "do not fit on 0 CPUs", id="nothing"),
    ],
)
def test_no_room(
    monkeypatch: pytest.MonkeyPatch, cluster: dict[str, float], settings: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: cluster)
    with pytest.raises(ClusterError, match=message):
        choose_pool(ResourcesConfig(**settings))


@pytest.mark.parametrize(
    ("pool", "bounds"),
    [
        pytest.param(Pool(2, 2, 1.0, 0.0, 0.99), (2, 2), id="fixed"),
        pytest.param(Pool(1, 4, 1.0, 0.0, 0.99), (1, 4), id="growing"),
    ],
)
def test_strategy(pool: Pool, bounds: tuple[int, int]) -> None:
    strategy = pool.strategy()
    assert (strategy.min_size, strategy.max_size) == bounds
    assert strategy.max_concurrent_calls_per_actor == 2
    assert strategy.max_tasks_in_flight_per_actor == 4
    assert strategy.enable_true_multi_threading is False  # one model call at a time


class FakeRay:
    """Takes the place of Ray's own start and end."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, running: bool = False, error: Exception | None = None) -> None:
        self.running = running
        self.error = error
        self.starts: list[dict[str, Any]] = []
        self.ends = 0
        monkeypatch.setattr(ray, "is_initialized", lambda: self.running)
        monkeypatch.setattr(ray, "init", self.start)
        monkeypatch.setattr(ray, "shutdown", self.end)
        monkeypatch.setattr("pipeline.cluster.connect.describe_cluster", dict)

    def start(self, **options: Any) -> None:
        self.starts.append(options)
        if self.error is not None:
            raise self.error
        self.running = True

    def end(self) -> None:
        self.ends += 1
        self.running = False


@pytest.mark.parametrize(
    ("address", "environment", "used"),
    [
        pytest.param(None, None, None, id="this machine"),
        pytest.param("head:6379", None, "head:6379", id="config"),
        pytest.param(None, "other:6379", "other:6379", id="environment"),
        pytest.param("head:6379", "other:6379", "head:6379", id="config before environment"),
        pytest.param(None, "", None, id="empty environment variable"),
    ],
)
def test_connect(
    monkeypatch: pytest.MonkeyPatch, address: str | None, environment: str | None, used: str | None
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if environment is not None:
        monkeypatch.setenv("RAY_ADDRESS", environment)
    fake = FakeRay(monkeypatch)
    with connect(None if address is None else UriText(address)):
        assert fake.running
    assert [start.get("address") for start in fake.starts] == [used]
    assert fake.ends == 1


def test_a_ray_that_runs_is_used_and_left_running(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay(monkeypatch, running=True)
    with connect(UriText("head:6379")):
        pass
    assert (fake.starts, fake.ends, fake.running) == ([], 0, True)


def test_ray_ends_with_a_run_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    fake = FakeRay(monkeypatch)
    with pytest.raises(KeyError), connect(None):
        raise KeyError
    assert fake.ends == 1


@pytest.mark.parametrize("error", [ConnectionError("no answer"), ValueError("no address")])
def test_no_cluster(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    fake = FakeRay(monkeypatch, error=error)
    with pytest.raises(ClusterError, match="no Ray cluster answers at head:6379: no a"), connect(UriText("head:6379")):
        pass
    assert fake.ends == 0
