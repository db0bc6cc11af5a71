"""One Ray and one S3 server for all tests that need one; and how tests are dealt to two processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any
from unittest import mock

import pytest

from testing.s3_server import S3Server, s3_environment_variables, s3_process

_IN_PARALLEL = "PYTEST_XDIST_WORKER" in os.environ
if _IN_PARALLEL:
    # Before torch is imported: threads of two processes that fight for the cores only wait for each other.
    os.environ["OMP_NUM_THREADS"] = "1"
_RAY: dict[str, Any] = {
    "address": "local",
    "num_cpus": 3,
    "num_gpus": 0,
    "object_store_memory": 512 << 20,
    "include_dashboard": False,
    "log_to_driver": False,
}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Under pytest-xdist: a file stays in one process, as its fixtures do, and all that share one Ray in one.

    The longest come first, or one process would be left alone with them: the shared Ray, then files that start their
    own. `tryfirst`, as xdist looks for the groups in the same hook.
    """
    if not _IN_PARALLEL:
        return
    sharing = {item.path for item in items if "ray_s3" in getattr(item, "fixturenames", ())}
    own = {item.path for item in items if item.get_closest_marker("ray")} - sharing
    for item in items:
        group = "ray" if item.path in sharing else item.nodeid.partition("::")[0]
        item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: (item.path not in sharing, item.path not in own))


@pytest.fixture(scope="session")
def ray_s3() -> Iterator[S3Server]:
    """Ray in this process, three CPUs and no GPU; and S3, as workers get their environment when Ray starts.

    In this process the S3 variables are not set: see `testing.s3_server.s3_environment_variables`.
    """
    import ray

    with ExitStack() as stack:
        # As long as Ray is there: its datasets would start a process that counts what is used.
        stack.enter_context(mock.patch.dict(os.environ, {"RAY_USAGE_STATS_ENABLED": "0"}))
        server = stack.enter_context(s3_process())
        server.create_bucket("pictures")
        with s3_environment_variables(server.endpoint):
            try:
                ray.init(**_RAY)
            except Exception:  # a plain one: Ray gives its processes 30 s, too few on a machine that does much else
                ray.shutdown()
                ray.init(**_RAY)
        stack.callback(ray.shutdown)
        yield server


@pytest.fixture(scope="session")
def ray_cluster(ray_s3: S3Server) -> None:
    """Ray in this process, for tests that do not care about S3."""


@pytest.fixture(scope="session")
def _s3_process() -> Iterator[S3Server]:
    with s3_process() as server:
        yield server


@pytest.fixture(scope="module")
def s3(_s3_process: S3Server) -> Iterator[S3Server]:
    """An S3 server with an empty bucket; what other test files left there is gone."""
    _s3_process.reset()
    _s3_process.create_bucket("bucket")
    with s3_environment_variables(_s3_process.endpoint):
        yield _s3_process
