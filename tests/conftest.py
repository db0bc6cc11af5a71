"""One Ray for all tests that need one, and an S3 server that its workers know."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from unittest import mock

import pytest

from testing.s3_server import S3Server, s3_server


@pytest.fixture(scope="session")
def ray_s3() -> Iterator[S3Server]:
    """Ray in this process, three CPUs and no GPU; and S3, as workers get their environment when Ray starts.

    In this process the S3 variables are not set: see `testing.s3_server.s3_environment_variables`.
    """
    import ray

    with ExitStack() as stack:
        outside = dict(os.environ)
        server = stack.enter_context(s3_server())
        with mock.patch.dict(os.environ, {"RAY_USAGE_STATS_ENABLED": "0"}):
            ray.init(
                address="local",
                num_cpus=3,
                num_gpus=0,
                object_store_memory=512 << 20,
                include_dashboard=False,
                log_to_driver=False,
            )
        stack.callback(ray.shutdown)
        os.environ.clear()
        os.environ.update(outside)
        server.create_bucket("pictures")
        yield server


@pytest.fixture(scope="session")
def ray_cluster(ray_s3: S3Server) -> None:
    """Ray in this process, for tests that do not care about S3."""


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    """An S3 server of a test file's own."""
    with s3_server() as server:
        server.create_bucket("bucket")
        yield server
