"""One Ray and one S3 server for all tests that need one; and how tests are dealt to two processes."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from xdist.scheduler import LoadScopeScheduling

from pipeline.storage.uris import Uri
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


@cache
def _shares_ray(file: Path) -> bool:
    """Whether tests of the file take the Ray that this process starts."""
    return re.search(r"\bray_(s3|cluster)\b", file.read_text(encoding="utf-8")) is not None


class _FilesAndRay(LoadScopeScheduling):
    """A file stays in one process, as its fixtures do; all files that share a Ray stay in one as well.

    Not ``--dist loadgroup``, which does nothing with pytest 9.2: xdist 3.8 writes the group to where it is not read.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "ray" if _shares_ray(self.config.rootpath / file) else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> _FilesAndRay | None:
    """With ``--dist loadfile``."""
    return _FilesAndRay(config, log) if config.getoption("dist") == "loadfile" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """In parallel the longest come first: those that share a Ray, then files that start their own."""
    if not _IN_PARALLEL:
        return
    own = {item.path for item in items if item.get_closest_marker("ray")}
    items.sort(key=lambda item: (not _shares_ray(item.path), item.path not in own))


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


@pytest.fixture(params=["local", "s3", "memory"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> Uri:
    """A folder that is not there yet: on this disk, in a store like S3, and where fsspec alone leads."""
    if request.param == "local":
        return Uri(str(tmp_path / "out"))
    if request.param == "memory":
        return Uri(f"memory://{uuid.uuid4().hex}/out")
    request.getfixturevalue("s3")
    return Uri(f"s3://bucket/{uuid.uuid4().hex}/out")


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For small tensors: several threads only wait for each other, for long where cores are shared."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
