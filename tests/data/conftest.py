from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.data.flaky_server import FlakyServer
from tests.s3_server import S3Server, s3_environment_variables, s3_server


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with s3_server() as server:
        server.create_bucket("bucket")
        yield server


@pytest.fixture
def flaky() -> Iterator[FlakyServer]:
    server = FlakyServer()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    with s3_environment_variables(server.url):
        yield server
    server.closing.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def scratch(tmp_path: Path) -> str:
    return str(tmp_path / "scratch")
