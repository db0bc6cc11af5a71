from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from testing.s3_server import s3_environment_variables
from tests.storage.flaky_server import FlakyServer


@pytest.fixture
def flaky() -> Iterator[FlakyServer]:
    server = FlakyServer()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    with s3_environment_variables(server.url):
        yield server
    server.closing.set()
    server.shutdown()
    server.server_close()
