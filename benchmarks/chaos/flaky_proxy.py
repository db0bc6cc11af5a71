"""A proxy in front of an S3 server that stumbles on a share of the requests, whatever they ask for.

A request may be refused with 503 or 500, delayed, cut off before it reached the server, cut off after the server
did what it asked for, or have its answer cut off in the middle.
"""

from __future__ import annotations

import http.client
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

_STUMBLES = ("slow_down", "internal_error", "delay", "reset", "lost_answer", "half_answer")
_WEIGHTS = (4, 1, 2, 2, 2, 1)
_MAX_DELAY_S = 1.0
_ERROR = "<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code><Message>{code}</Message></Error>"
_NOT_FORWARDED = {"connection", "transfer-encoding", "keep-alive", "expect", "content-length"}


class FlakyProxy(ThreadingHTTPServer):
    """The server.

    Args:
        target: ``http://host:port`` of the real one.
        share: of the requests that something happens to.
        seed: of the dice; which request meets which number depends on the order in which they come.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, target: str, share: float, seed: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target = urlsplit(target).netloc
        self.requests: Counter[str] = Counter()
        self._share = share
        self._random = random.Random(seed)
        self._lock = threading.Lock()

    @property
    def endpoint(self) -> str:
        """URL that clients are given in place of the service's."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def draw(self) -> tuple[str, float]:
        """What happens to the next request, and a number between 0 and 1 to do it with."""
        with self._lock:
            stumbles = self._random.random() < self._share
            what = self._random.choices(_STUMBLES, _WEIGHTS)[0] if stumbles else "passed"
            self.requests[what] += 1
            return what, self._random.random()

    def shutdown_request(self, request: socket.socket) -> None:  # type: ignore[override]
        """Close without the orderly end that comes first otherwise, so that a reset is one."""
        self.close_request(request)

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that go away are no news here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FlakyProxy

    def handle_one(self) -> None:
        """Any method."""
        body = self._body()
        what, dice = self.server.draw()
        if what == "slow_down":
            return self._refuse(503, "SlowDown")
        if what == "internal_error":
            return self._refuse(500, "InternalError")
        if what == "reset":
            return self._reset()
        if what == "delay":
            time.sleep(dice * _MAX_DELAY_S)
        status, headers, content = self._forward(body)
        if what == "lost_answer":
            return self._reset()
        self._answer(status, headers, content, cut=what == "half_answer")
        return None

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = handle_one

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(self.server.target, timeout=60)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in _NOT_FORWARDED:
                    connection.putheader(name, value)
            connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            response = connection.getresponse()
            return response.status, response.getheaders(), response.read()
        finally:
            connection.close()

    def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes, cut: bool) -> None:
        self.send_response_only(status)
        length = None
        for name, value in headers:
            if name.lower() == "content-length":
                length = value
            elif name.lower() not in _NOT_FORWARDED:
                self.send_header(name, value)
        has_body = self.command != "HEAD" and status not in (204, 304)
        # The answer to HEAD names the length of what it does not bring.
        self.send_header("Content-Length", str(len(content)) if has_body else length or "0")
        self.end_headers()
        if not has_body:
            return
        if cut:
            self.wfile.write(content[: len(content) // 2])
            self._reset()
        else:
            self.wfile.write(content)

    def _refuse(self, status: int, code: str) -> None:
        content = _ERROR.format(code=code).encode()
        self._answer(status, [("Content-Type", "application/xml")], content, cut=False)

    def _reset(self) -> None:
        """Close with RST, so that the client sees "connection reset" and no orderly end."""
        self.close_connection = True
        self.wfile.flush()
        # Without lingering, the close at the end of this connection throws away what was not sent.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@contextmanager
def flaky_proxy(target: str, share: float, seed: int) -> Iterator[FlakyProxy]:
    """Serve from a thread of this process; see `FlakyProxy`."""
    proxy = FlakyProxy(target, share, seed)
    thread = threading.Thread(target=proxy.serve_forever, name="flaky-proxy", daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.shutdown()
        proxy.server_close()
        thread.join()
