from __future__ import annotations

import http.server
import socket
from collections.abc import Iterator

import pytest

from pipeline.storage.errors import StorageError
from pipeline.storage.listing import is_folder
from pipeline.storage.streams import open_stream
from pipeline.storage.uris import Uri
from testing.web import serving


class _Answers(http.server.BaseHTTPRequestHandler):
    """What the path says."""

    def do_GET(self) -> None:
        self.send_response(int(self.path[1:4]))
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def web() -> Iterator[str]:
    with serving(_Answers) as url:
        yield url.removeprefix("http://")


def said(uri: str) -> set[str]:
    """Of both ways to a file."""
    with pytest.raises(StorageError) as asked:
        is_folder(Uri(uri))
    with pytest.raises(StorageError) as opened, open_stream(Uri(uri)):
        pass
    return {str(asked.value), str(opened.value)}


@pytest.mark.parametrize("status", [404, 410])
def test_pages_that_are_not_there(web: str, status: int) -> None:
    assert said(f"http://{web}/{status}/a.csv?sig=secret") == {f"http://{web}/{status}/a.csv does not exist"}


@pytest.mark.parametrize("status", [401, 403, 500, 503])
def test_servers_that_refuse(web: str, status: int) -> None:
    page = f"http://{web}/{status}/a.csv"
    assert said(f"{page}?sig=secret") == {f"{page} cannot be read: {web} answers {status}"}


def test_no_connection() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{free.getsockname()[1]}"  # bound, and nobody listens
        (message,) = said(f"http://{host}/a.csv?sig=secret")
    assert message.startswith(f"http://{host}/a.csv cannot be read: no connection to {host}: ")
    assert "secret" not in message
    (message,) = said("https://no-such-host.invalid/a.csv")  # of no domain, ever (RFC 6761)
    assert "no connection to no-such-host.invalid: " in message
