"""An S3 and HTTP server for the bad days, and fetchers that do not wait long for it."""

from __future__ import annotations

import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from pipeline.storage.access import AccessPolicy
from pipeline.storage.backoff import Backoff
from pipeline.storage.fetch.fetcher import Fetcher
from pipeline.storage.fetch.rules import FetchError, FetchSettings
from pipeline.storage.uris import Uri, UriText

BODY = bytes(range(256)) * 40
# Generous where only the outcome counts, so that a busy machine changes nothing; short where time must run out.
QUICK = FetchSettings(attempt_timeout_s=3, deadline_s=15, max_attempts=3, fetch_concurrency=8)
SHORT_TIMEOUT_S = 0.4
SECRET = "T0PS3CRET"


class FlakyHandler(BaseHTTPRequestHandler):
    """Answers by the last part of the path; ``503-then-ok-1`` misbehaves on the first request only."""

    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16  # header and body in one segment
    server: FlakyServer

    def do_GET(self) -> None:
        name = self.path.partition("?")[0].rpartition("/")[2]
        self.server.requests[f"{self.command} {self.path}"] += 1
        self.server.authorizations.append(self.headers.get("Authorization", ""))
        behaviour, _, rest = name.partition("-then-ok-")
        if rest and self.server.requests[f"{self.command} {self.path}"] > int(rest[0]):
            behaviour = "ok"
        if behaviour.isdigit():
            self.answer(int(behaviour), f"<Error><Code>Odd</Code><Message>{SECRET}</Message></Error>".encode())
        else:
            getattr(self, f"do_{behaviour.partition('.')[0]}")()
        self.wfile.flush()

    do_HEAD = do_GET

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def do_ok(self) -> None:
        status, body, headers = self.wanted()
        self.answer(status, body, **headers)

    def do_whole(self) -> None:
        self.answer(200, BODY)

    def wanted(self) -> tuple[int, bytes, dict[str, str]]:
        """All, or the part that was asked for."""
        if (range_header := self.headers.get("Range")) is None:
            return 200, BODY, {}
        first, last = map(int, range_header.removeprefix("bytes=").split("-"))
        return 206, BODY[first : last + 1], {"Content-Range": f"bytes {first}-{last}/{len(BODY)}"}

    def send_half(self) -> None:
        status, body, headers = self.wanted()
        self.answer(status, body[: len(body) // 2], **headers, **{"Content-Length": str(len(body))})
        self.wfile.flush()

    def do_halfshort(self) -> None:
        self.send_half()
        self.close_connection = True

    def do_halfdrip(self) -> None:
        self.send_half()
        self.drip()

    def do_halfsilent(self) -> None:
        self.send_half()
        self.server.closing.wait(10)

    def do_halfreset(self) -> None:
        self.send_half()
        self.do_reset()

    def do_empty(self) -> None:
        self.answer(200, b"")

    def do_reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def do_garbage(self) -> None:
        self.wfile.write(b"SSH-2.0-OpenSSH\r\n\r\n")
        self.close_connection = True

    def do_short(self) -> None:
        self.answer(200, BODY[:10], **{"Content-Length": "100"})
        self.close_connection = True

    def do_silent(self) -> None:
        self.server.closing.wait(10)

    def do_drip(self) -> None:
        self.answer(200, b"", **{"Content-Length": "1000"})
        self.drip()

    def do_dripheader(self) -> None:
        self.send_response(200)
        self.flush_headers()
        self.wfile.write(b"X-Slow: ")
        self.drip()

    def drip(self) -> None:
        try:
            while not self.server.closing.wait(0.05):
                self.wfile.write(b"x")
                self.wfile.flush()
        except OSError:
            self.close_connection = True

    def do_huge(self) -> None:
        self.answer(200, b"", **{"Content-Length": str(10**12)})
        self.pour(lambda block: block)

    def do_hugechunked(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.pour(lambda block: b"%x\r\n%s\r\n" % (len(block), block))

    def pour(self, frame: Callable[[bytes], bytes]) -> None:
        try:
            while not self.server.closing.is_set():
                self.wfile.write(frame(bytes(1 << 16)))
                self.server.poured_bytes += 1 << 16
        except OSError:
            self.close_connection = True

    def do_redirect(self) -> None:
        self.answer(302, b"", Location=self.path.partition("?to=")[2])

    def do_redirect301(self) -> None:
        self.answer(301, b"<Error><Code>PermanentRedirect</Code></Error>")

    def do_badregion(self) -> None:
        self.answer(400, b"<Error><Code>AuthorizationHeaderMalformed</Code></Error>")

    def log_message(self, *_: Any) -> None:
        pass


class FlakyServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), FlakyHandler)
        self.requests: Counter[str] = Counter()
        self.authorizations: list[str] = []
        self.poured_bytes = 0
        self.closing = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_: Any) -> None:
        pass


def fetcher(flaky: FlakyServer | None = None, roots: tuple[Uri, ...] | None = None, **changes: Any) -> Fetcher:
    roots = (Uri(f"{flaky.url}/"), Uri("s3://bucket")) if flaky else roots
    return Fetcher(FetchSettings(**{**QUICK.model_dump(), **changes}), AccessPolicy(roots), Backoff(0.01, 0.02))


def error_of(fetcher: Fetcher, uri: str) -> FetchError:
    with pytest.raises(FetchError) as caught:
        fetcher.fetch(UriText(uri))
    assert SECRET not in str(caught.value)
    assert SECRET not in repr(caught.value.__dict__)
    return caught.value
