"""Replicas that fit the cluster, and how Ray is found."""

from __future__ import annotations

import logging
import re
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import ray
from pydantic import ValidationError
from ray._private.authentication_test_utils import (
    authentication_env_guard,
    reset_auth_token_state,
    set_auth_mode,
    set_env_auth_token,
)
from ray.core.generated.gcs_service_pb2 import CheckAliveReply
from ray.core.generated.gcs_service_pb2_grpc import (
    NodeInfoGcsServiceServicer,
    add_NodeInfoGcsServiceServicer_to_server,
)

from pipeline.annotate import pool
from pipeline.annotate.config import ResourcesConfig
from pipeline.annotate.pool import NoGpus, Pool, choose_pool, gpus_waited_for
from pipeline.cluster.address import ClusterError
from pipeline.cluster.connect import RayNotStarted, check_address, connect
from pipeline.errors import RunError
from pipeline.storage.uris import UriText

LAPTOP = [{"CPU": 8.0}]
TWO_CORES = [{"CPU": 2.0}]
GPU_BOX = [{"CPU": 16.0, "GPU": 1.0}]
HEAD: dict[str, float] = {}
CLUSTER = [HEAD, {"CPU": 64.0}, *4 * [{"CPU": 48.0, "GPU": 4.0}]]


@pytest.mark.parametrize(
    ("cluster", "settings", "expected"),
    [
        pytest.param(LAPTOP, {}, Pool(1, 1, 0.0, 1.0, 0.99, 1), id="laptop"),
        pytest.param(
            LAPTOP, {"actors": 2, "cpus_per_actor": 3.0}, Pool(2, 2, 0.0, 3.0, 0.99, 2), id="laptop, two replicas"
        ),
        pytest.param(LAPTOP, {"cpus_per_actor": 0.0}, Pool(1, 1, 0.0, 0.0, 0.99, 1), id="laptop, nothing reserved"),
        pytest.param(
            LAPTOP,
            {"cpus_per_actor": 2.0, "fetch_cpus_per_task": 2.0},
            Pool(1, 1, 0.0, 2.0, 1.98, 1),
            id="kept apart from fetch",
        ),
        pytest.param(
            LAPTOP, {"fetch_cpus_per_task": 0.5}, Pool(1, 1, 0.0, 1.0, 0.495, 1), id="fetch takes less anyway"
        ),
        pytest.param(LAPTOP, {"gpus_per_actor": 0.0, "actors": 7}, Pool(7, 7, 0.0, 1.0, 0.99, 7), id="as many as fit"),
        pytest.param(TWO_CORES, {}, Pool(1, 1, 0.0, 1.0, 0.99, 1), id="two cores"),
        pytest.param(GPU_BOX, {}, Pool(1, 1, 1.0, 0.0, 0.99, 1), id="GPU box"),
        pytest.param(GPU_BOX, {"gpus_per_actor": 0.0}, Pool(1, 1, 0.0, 1.0, 0.99, 1), id="GPU box, on the CPU"),
        pytest.param(
            GPU_BOX, {"gpus_per_actor": 0.5, "actors": 2}, Pool(2, 2, 0.5, 0.0, 0.99, 2), id="two share a GPU"
        ),
        pytest.param(GPU_BOX, {"cpus_per_actor": 2.0}, Pool(1, 1, 1.0, 2.0, 0.99, 1), id="CPUs beside the GPU"),
        pytest.param(CLUSTER, {"actors": 16}, Pool(16, 16, 1.0, 0.0, 0.99, 16), id="whole cluster"),
        pytest.param(
            CLUSTER, {"min_actors": 2, "max_actors": 64}, Pool(2, 64, 1.0, 0.0, 0.99, 16), id="may grow beyond"
        ),
        pytest.param(CLUSTER, {"min_actors": 3, "max_actors": 3}, Pool(3, 3, 1.0, 0.0, 0.99, 3), id="range of one"),
        pytest.param([{"CPU": 8.0, "GPU": 0.5}], {}, Pool(1, 1, 0.0, 1.0, 0.99, 1), id="less than a GPU is none"),
        pytest.param([{"CPU": 64.0}] * 3, {}, Pool(1, 1, 0.0, 1.0, 0.99, 1), id="CPUs alone, many"),
        pytest.param(CLUSTER, {}, Pool(16, 16, 1.0, 0.0, 0.99, 16), id="all GPUs"),
        pytest.param(CLUSTER, {"gpus_per_actor": 0.5}, Pool(32, 32, 0.5, 0.0, 0.99, 32), id="all, two on each"),
        pytest.param(CLUSTER, {"gpus_per_actor": 0.4}, Pool(32, 32, 0.4, 0.0, 0.99, 32), id="no part of two GPUs"),
        pytest.param(CLUSTER, {"gpus_per_actor": 1 / 3}, Pool(48, 48, 1 / 3, 0.0, 0.99, 48), id="thirds"),
        pytest.param(CLUSTER, {"cpus_per_actor": 16.0}, Pool(12, 12, 1.0, 16.0, 0.99, 12), id="CPUs of each node"),
        pytest.param(
            [{"CPU": 8.0, "GPU": 8.0}], {"cpus_per_actor": 1.0}, Pool(7, 7, 1.0, 1.0, 0.99, 7), id="one core is kept"
        ),
        pytest.param([HEAD, {"CPU": 4.0, "GPU": 1.5}], {}, Pool(1, 1, 1.0, 0.0, 0.99, 1), id="half a GPU is over"),
        pytest.param(CLUSTER, {"wait_for_gpus_s": 9.0, "actors": 20}, Pool(20, 20, 1.0, 0.0, 0.99, 20), id="16 came"),
        pytest.param(CLUSTER, {"wait_for_gpus_s": 9.0}, Pool(16, 16, 1.0, 0.0, 0.99, 16), id="all that came"),
        pytest.param(
            CLUSTER,
            {"wait_for_gpus_s": 9.0, "min_actors": 20, "max_actors": 32},
            Pool(20, 32, 1.0, 0.0, 0.99, 20),
            id="fewer than the fewest came",
        ),
    ],
)
def test_pool(
    monkeypatch: pytest.MonkeyPatch, cluster: list[dict[str, float]], settings: dict[str, Any], expected: Pool
) -> None:
    monkeypatch.setattr(pool, "node_resources", lambda: cluster)
    assert choose_pool(ResourcesConfig(**settings)) == expected


@pytest.mark.parametrize(
    ("cluster", "settings", "warnings"),
    [
        pytest.param([{"CPU": 3.0, "GPU": 8.0}], {}, ["3 CPUs for 8 GPUs: .* so they feed about 200 "], id="few CPUs"),
        pytest.param([{"CPU": 3.0, "GPU": 8.0}], {"actors": 3}, [], id="not for three of them"),
        pytest.param([{"CPU": 3.0, "GPU": 2.0}], {"cpus_per_actor": 0.75}, ["1.5 CPUs for 2 "], id="they take some"),
        pytest.param([{"CPU": 64.0}], {}, ["a single replica on one of 64 CPUs: "], id="idle CPUs"),
        pytest.param([{"CPU": 64.0}], {"cpus_per_actor": 32.0}, [], id="chosen"),
        pytest.param(TWO_CORES, {}, [], id="two cores"),
        pytest.param(CLUSTER, {}, [], id="enough of all"),
    ],
)
def test_what_is_short_is_told(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    cluster: list[dict[str, float]],
    settings: dict[str, Any],
    warnings: list[str],
) -> None:
    monkeypatch.setattr(pool, "node_resources", lambda: cluster)
    choose_pool(ResourcesConfig(**settings))
    assert len(caplog.messages) == len(warnings)
    assert all(re.search(pattern, said) for pattern, said in zip(warnings, caplog.messages, strict=True))


@pytest.mark.parametrize(
    ("cluster", "settings", "message"),
    [
        pytest.param(
            LAPTOP,
            {"gpus_per_actor": 1.0},
            "1 replica of 1 GPU do not fit on 0 GPUs, which have room for 0",
            id="no GPU",
        ),
        pytest.param(GPU_BOX, {"actors": 2}, "2 replicas of 1 GPU do not fit on 1 GPU", id="one GPU too few"),
        pytest.param(
            GPU_BOX,
            {"actors": 3, "gpus_per_actor": 0.5},
            "3 replicas of 0.5 GPUs do not fit on 1 GPU, which have room for 2",
            id="shares too many",
        ),
        pytest.param(
            CLUSTER,
            {"min_actors": 17, "max_actors": 20},
            "17 replicas of 1 GPU do not fit on 16 GPUs",
            id="fewest do not fit",
        ),
        pytest.param(LAPTOP, {"actors": 8}, "8 replicas of 1 CPU, and 1 CPU for", id="no core left to fetch"),
        pytest.param([{"CPU": 1.0}], {}, "do not fit on 1 CPU:", id="one core"),
        pytest.param(
            TWO_CORES,
            {"actors": 2, "cpus_per_actor": 0.9, "fetch_cpus_per_task": 0.4},
            "2 replicas of 0.9 CPUs, and 0.4 CPUs for fetching images",
            id="too little left to fetch",
        ),
        pytest.param(GPU_BOX, {"cpus_per_actor": 64.0}, "1 replica of 64 CPUs", id="all cores beside the GPU"),
        pytest.param([HEAD], {}, "do not fit on 0 CPUs", id="nothing"),
        pytest.param([{"GPU": 2.0}], {"gpus_per_actor": 0.7, "actors": 3}, "have room for 2", id="parts of two GPUs"),
    ],
)
def test_no_room(
    monkeypatch: pytest.MonkeyPatch, cluster: list[dict[str, float]], settings: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(pool, "node_resources", lambda: cluster)
    with pytest.raises(ClusterError, match=message):
        choose_pool(ResourcesConfig(**settings))


@pytest.mark.parametrize(
    ("replicas", "bounds"),
    [
        pytest.param(Pool(2, 2, 1.0, 0.0, 0.99, 2), (2, 2, 2), id="fixed"),
        pytest.param(Pool(1, 4, 1.0, 0.0, 0.99, 3), (1, 3, 4), id="growing"),
    ],
)
def test_strategy(replicas: Pool, bounds: tuple[int, int, int]) -> None:
    strategy = replicas.strategy()
    assert (strategy.min_size, strategy.initial_size, strategy.max_size) == bounds
    assert strategy.max_concurrent_calls_per_actor == 2
    assert strategy.max_tasks_in_flight_per_actor == 4
    assert strategy.enable_true_multi_threading is False  # one model call at a time


class FakeScaler:
    """Nodes that come some looks after they were asked for; and a clock that goes on with each look."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *looks: list[dict[str, float]]) -> None:
        self._looks = looks
        self._now = 0.0
        self.asked: list[list[dict[str, float]]] = []
        monkeypatch.setattr(pool, "request_resources", lambda bundles: self.asked.append(bundles))
        monkeypatch.setattr(pool, "node_resources", lambda: self._looks[min(int(self._now), len(looks) - 1)])
        monkeypatch.setattr(pool.time, "monotonic", lambda: self._now)
        monkeypatch.setattr(pool.time, "sleep", self._sleep)

    def _sleep(self, seconds: float) -> None:
        self._now += seconds


GPU_NODE = {"CPU": 8.0, "GPU": 1.0}


@pytest.mark.parametrize(
    ("settings", "looks", "seconds", "bundles", "expected"),
    [
        pytest.param({}, [[HEAD], [HEAD], [HEAD, GPU_NODE]], 2, 1, (1, 1), id="one, without a setting"),
        pytest.param({}, [[HEAD], [HEAD, {"CPU": 96.0, "GPU": 8.0}]], 1, 1, (8, 8), id="all that came with it"),
        pytest.param({"actors": 3}, [[HEAD], [GPU_NODE] * 2, [GPU_NODE] * 3], 2, 3, (3, 3), id="all of a fixed pool"),
        pytest.param({"actors": 3}, [[HEAD], [GPU_NODE] * 2], 30, 3, (3, 3), id="not all in time"),
        pytest.param(
            {"min_actors": 2, "max_actors": 4}, [[GPU_NODE], [GPU_NODE] * 2], 1, 4, (2, 4), id="the fewest of a pool"
        ),
        pytest.param({"actors": 1}, [[{"GPU": 1.0}], [{"GPU": 1.0}, {"CPU": 4.0}]], 1, 1, (1, 1), id="CPUs as well"),
        pytest.param({"actors": 1}, [[GPU_NODE]], 0, 1, (1, 1), id="there already"),
    ],
)
def test_gpus_are_asked_for_and_waited_for(
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
    looks: list[list[dict[str, float]]],
    seconds: float,
    bundles: int,
    expected: tuple[int, int],
) -> None:
    scaler = FakeScaler(monkeypatch, *looks)
    config = ResourcesConfig(wait_for_gpus_s=30.0, **settings)
    with gpus_waited_for(config):
        assert pool.time.monotonic() == seconds
        chosen = choose_pool(config)
        assert (chosen.min_actors, chosen.max_actors) == expected
        assert scaler.asked == [[{"GPU": 1.0}] * bundles + [{"CPU": 1}]]
    assert scaler.asked[1:] == [[]]


def test_no_gpu_comes(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    scaler = FakeScaler(monkeypatch, [{"CPU": 8.0}])
    config = ResourcesConfig(wait_for_gpus_s=40.0, actors=2)
    with (
        caplog.at_level("INFO"),
        pytest.raises(NoGpus, match=r"no node with 1 GPU has come within 40\.0 s: raise resources\.wait_for_gpus_s"),
        gpus_waited_for(config),
    ):
        choose_pool(config)
    assert scaler.asked[-1] == []  # nothing comes for a run that is over
    assert [record.message for record in caplog.records] == [
        *(f"waiting for GPUs: 0 of 2 replicas have room, {left} s left" for left in ("40.0", "25.0", "10.0")),
        "the time to wait for GPUs is over: 0 of 2 replicas have room",
    ]
    expected = choose_pool(config, to_come=True)
    assert (expected.max_actors, expected.gpus) == (2, 1.0)


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
        known = {"nodes": 1, "cpus": 2.0, "gpus": 0.0, "gpu_kinds": [], "object_store_gib": 0.5}
        monkeypatch.setattr("pipeline.cluster.connect.describe_cluster", lambda: known)
        monkeypatch.setattr("pipeline.cluster.connect._PAUSE_S", 0.0)
        monkeypatch.setattr("pipeline.cluster.address.Address.check", lambda address: None)

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
        pytest.param(None, None, "local", id="this machine"),
        pytest.param("local", None, "local", id="this machine, by name"),
        pytest.param("head:6379", None, "head:6379", id="config"),
        pytest.param(None, "other:6379", "other:6379", id="environment"),
        pytest.param("head:6379", "other:6379", "head:6379", id="config before environment"),
        pytest.param(None, "", "local", id="empty environment variable"),
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


@pytest.mark.parametrize("address", [None, UriText("head:6379")])
def test_only_a_checkout_is_on_the_path_of_workers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, address: UriText | None
) -> None:
    """Ray's own condition for putting the driver's folder first there."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for folder in (Path(__file__).parents[2], tmp_path):
        monkeypatch.chdir(folder)
        fake = FakeRay(monkeypatch)
        with connect(address):
            pass
        assert [start["job_config"]._client_job for start in fake.starts] == [folder == tmp_path]


def test_the_client_makes_a_job_config_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay(monkeypatch)
    with connect(UriText("ray://head:10001")):
        pass
    assert [start["job_config"] for start in fake.starts] == [None]


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


@pytest.mark.parametrize("name", ["StreamingExecutor-dataset_1_0", "ray-data-metadata-prefetch", "uses-ray-progress"])
def test_ray_ends_after_the_threads_that_use_it(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    fake = FakeRay(monkeypatch)
    running: list[bool] = []

    def use_ray() -> None:
        time.sleep(0.2)
        running.append(fake.running)

    with connect(None):
        threading.Thread(target=use_ray, name=name, daemon=True).start()
    assert (running, fake.ends) == ([True], 1)


def test_ray_ends_though_a_signal_cuts_the_wait_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    fake = FakeRay(monkeypatch)

    def signalled(thread: threading.Thread, timeout: float) -> None:
        raise KeyboardInterrupt

    over = threading.Event()
    threading.Thread(target=over.wait, name="uses-ray-x", daemon=True).start()
    monkeypatch.setattr(threading.Thread, "join", signalled)
    with pytest.raises(KeyboardInterrupt), connect(None):
        pass
    over.set()
    assert fake.ends == 1


@pytest.mark.parametrize("error", [ConnectionError("no answer"), ValueError("no address")])
def test_no_cluster(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    fake = FakeRay(monkeypatch, error=error)
    message = r"no Ray cluster can be had at head:6379 \(resources.ray_address\): no a"
    with pytest.raises(ClusterError, match=message), connect(UriText("head:6379")):
        pass
    assert fake.ends == 0


def test_a_ray_that_is_slow_is_started_twice_and_told_how_to_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    fake = FakeRay(monkeypatch, error=Exception("The current node\ntimed out"))
    with pytest.raises(RayNotStarted, match="node timed out; RAY_raylet_start_wait_time_s=120"), connect(None):
        pass
    assert [len(fake.starts), fake.ends] == [2, 2]


def test_where_rays_words_are_is_said_where_they_may_tell_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(ray._private.worker, "_global_node", None)
    FakeRay(monkeypatch)
    caplog.set_level(logging.INFO)
    with connect(None):
        pass
    with pytest.raises(ClusterError), connect(None):
        raise ClusterError("no GPUs")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(RunError), connect(None):
        raise RunError("lost")
    (log,) = tmp_path.iterdir()
    said = [message for message in caplog.messages if "what Ray said" in message]
    assert said == [f"what Ray said meanwhile is in {log}"]


class Head(NodeInfoGcsServiceServicer):
    """Answers as the head of a cluster does, whatever it is asked."""

    def __init__(self, version: str, token: str | None) -> None:
        self.version, self.token = version, token

    def CheckAlive(self, request: object, context: grpc.ServicerContext) -> CheckAliveReply:
        """With the version, to those who have the token."""
        given = dict(context.invocation_metadata()).get("authorization")
        if self.token and given != f"Bearer {self.token}":
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "no")
        return CheckAliveReply(ray_version=self.version)


@contextmanager
def serving(*heads: Head) -> Iterator[int]:
    """The port of a server of gRPC: without a head, that of a cluster's clients."""
    server = grpc.server(ThreadPoolExecutor(2))
    for head in heads:
        add_NodeInfoGcsServiceServicer_to_server(head, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield port
    finally:
        server.stop(None)


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """No address in the environment, no Ray that is connected; and none may be started."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **options: pytest.fail("Ray was asked"))
    monkeypatch.setattr("pipeline.cluster.address.ANSWER_S", 1.0)


@pytest.mark.usefixtures("no_ray")
@pytest.mark.timeout(30)
class TestCheck:
    @pytest.mark.parametrize(
        ("address", "message"),
        [
            pytest.param("127.0.0.1:1", "Connection refused", id="nobody listens"),
            pytest.param("ray://127.0.0.1:1", "Connection refused", id="nobody listens for clients"),
            pytest.param("no-such-host.invalid:6379", "known|resolution", id="no such host"),
            pytest.param("192.0.2.77:6379", "no answer within 1 s|unreachable", id="a host that is silent"),
            pytest.param("head", "with the port", id="no port"),
            pytest.param("head:port", "with the port", id="a word as port"),
            pytest.param("head:99999", "with the port", id="a port too high"),
            pytest.param("http://head:8265", "http is for ray job submit", id="the dashboard"),
            pytest.param("ray://", "with the port", id="nothing"),
        ],
    )
    @pytest.mark.parametrize("origin", ["resources.ray_address", "RAY_ADDRESS"])
    def test_what_is_wrong_is_said(
        self, monkeypatch: pytest.MonkeyPatch, address: str, message: str, origin: str
    ) -> None:
        given = UriText(address)
        if origin == "RAY_ADDRESS":
            monkeypatch.setenv("RAY_ADDRESS", address)
            given = None
        with pytest.raises(ClusterError, match=message) as error, connect(given):
            pass
        assert f"at {address} ({origin}): " in str(error.value)

    def test_a_password_is_not_shown(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without a scheme nothing tells it from a host."""
        monkeypatch.setenv("RAY_ADDRESS", "me:SECRET@host:6379")
        with pytest.raises(ClusterError, match="RAY_ADDRESS holds a password") as error:
            check_address(None)
        assert "SECRET" not in str(error.value)
        with pytest.raises(ValidationError, match="holds no password") as refused:
            ResourcesConfig(ray_address=UriText("me:SECRET@host:6379"))
        assert "SECRET" not in str(refused.value)

    def test_no_ray_for_auto(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("ray._private.services.find_gcs_addresses", set)
        monkeypatch.setattr("ray._private.services.find_bootstrap_address", lambda folder: None)
        with pytest.raises(ClusterError, match="no Ray runs on this machine"):
            check_address(UriText("auto"))

    def test_what_is_left_of_a_ray_that_died(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("ray._private.services.find_gcs_addresses", set)
        monkeypatch.setattr("ray._private.services.find_bootstrap_address", lambda folder: "127.0.0.1:1")
        with pytest.raises(ClusterError, match=r"at auto .*refused"):
            check_address(UriText("auto"))

    def test_something_else_listens(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            with pytest.raises(ClusterError, match="it is no Ray"):
                check_address(UriText(f"127.0.0.1:{port}"))

    def test_a_cluster_of_this_version_is_taken(self) -> None:
        with serving(Head(ray.__version__, None)) as port:
            check_address(UriText(f"127.0.0.1:{port}"))
            check_address(UriText(f"localhost:{port}"))
            with pytest.raises(ClusterError, match="leave ray:// out"):
                check_address(UriText(f"ray://127.0.0.1:{port}"))

    def test_another_version(self) -> None:
        with serving(Head("2.9.1", None)) as port, pytest.raises(ClusterError, match=r"Ray 2\.9\.1, and here is 2"):
            check_address(UriText(f"127.0.0.1:{port}"))

    def test_the_port_of_clients(self) -> None:
        with serving() as port:
            check_address(UriText(f"ray://127.0.0.1:{port}"))
            with pytest.raises(ClusterError, match="wants ray:// before the host"):
                check_address(UriText(f"127.0.0.1:{port}"))

    def test_tokens(self) -> None:
        with serving(Head(ray.__version__, "right" * 8)) as port:
            address = UriText(f"127.0.0.1:{port}")
            with authentication_env_guard():
                set_auth_mode("disabled")  # a Ray of this process may have set another
                reset_auth_token_state()
                with pytest.raises(ClusterError, match="without a token; set RAY_AUTH_MODE=token"):
                    check_address(address)
                set_auth_mode("token")
                set_env_auth_token("right" * 8)
                reset_auth_token_state()
                check_address(address)
                set_env_auth_token("wrong" * 8)
                reset_auth_token_state()
                with pytest.raises(ClusterError, match="refuses this token") as error:
                    check_address(address)
        assert "wrong" not in str(error.value)
