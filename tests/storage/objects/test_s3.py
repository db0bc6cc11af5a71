from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler

import pytest

from pipeline.storage.backoff import Backoff
from pipeline.storage.objects import s3 as s3_objects
from pipeline.storage.objects.open import open_objects
from pipeline.storage.uris import Uri, UriError
from testing.s3_server import S3Server, s3_environment_variables
from testing.web import serving


class FaultyS3(BaseHTTPRequestHandler):
    """Objects in a dictionary; answers from ``faults`` are given first, after the PUT took place if so marked."""

    protocol_version = "HTTP/1.1"
    stored: dict[str, bytes]
    faults: list[tuple[int, bool]]
    requests: list[str]

    def do_GET(self) -> None:
        body = self.stored.get(self.path)
        self._answer(404 if body is None else 200, body or b"")

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.requests.append("PUT")
        status, takes_place = self.faults.pop(0) if self.faults else (200, True)
        if self.headers.get("If-None-Match") == "*" and self.path in self.stored:
            status, takes_place = 412, False
        if takes_place:
            self.stored[self.path] = body
        self._answer(
            status, b"" if status == 200 else b"<Error><Code>X</Code><AWSAccessKeyId>K</AWSAccessKeyId></Error>"
        )

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("ETag", f'"{hash(self.stored.get(self.path))}"')
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def faulty_s3(faults: list[tuple[int, bool]]) -> Iterator[type[FaultyS3]]:
    handler = type("Handler", (FaultyS3,), {"stored": {}, "faults": faults, "requests": []})
    with serving(handler) as url, s3_environment_variables(url):
        yield handler


class TestS3Faults:
    @pytest.fixture(autouse=True)
    def _no_waits(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(s3_objects, "BACKOFF", Backoff(base_s=0.001))

    def test_a_file_is_one_request(self) -> None:
        with faulty_s3([]) as server:
            open_objects(Uri("s3://bucket/out"), 5.0).put("data/a", b"x" * 20_000_000)
            assert server.requests == ["PUT"]
            assert server.stored["/bucket/out/data/a"] == b"x" * 20_000_000

    def test_what_can_pass_is_tried_again(self) -> None:
        with faulty_s3([(503, False), (500, False), (429, False)]) as server:
            open_objects(Uri("s3://bucket/out"), 5.0).put("a", b"1")
            assert server.stored == {"/bucket/out/a": b"1"}
            assert len(server.requests) == 4

    @pytest.mark.parametrize("status", [500, 503])
    def test_a_lost_answer_to_a_conditional_write(self, status: int) -> None:
        with faulty_s3([(status, True)]) as server:
            objects = open_objects(Uri("s3://bucket/out"), 5.0)
            version = objects.create("lock", b"mine")  # the second attempt meets the first one's object
            assert version == objects.read("lock")[1]
            assert len(server.requests) == 2
            with pytest.raises(FileExistsError):
                objects.create("lock", b"another's")

    @pytest.mark.parametrize(
        ("status", "attempts", "kind"),
        [(403, 1, PermissionError), (400, 1, OSError), (501, 1, OSError), (503, 3, OSError)],
    )
    def test_errors_say_nothing_secret(self, status: int, attempts: int, kind: type[OSError]) -> None:
        with faulty_s3([(status, False)] * 10) as server:
            with pytest.raises(kind) as caught:
                open_objects(Uri("s3://bucket/out"), 5.0, max_attempts=3).put("a", b"1")
            assert len(server.requests) == attempts
        assert re.match(rf"s3://bucket/out: HTTP {status} at attempt {attempts}", str(caught.value))
        assert "AWSAccessKeyId" not in str(caught.value)

    def test_no_such_bucket(self, s3: S3Server) -> None:
        objects = open_objects(Uri("s3://no-such-bucket/out"), 5.0)
        for call in (lambda: objects.put("a", b""), lambda: objects.create("a", b""), lambda: objects.list("data")):
            with pytest.raises(FileNotFoundError, match="no such bucket"):
                call()

    def test_empty_folder_names(self) -> None:
        with pytest.raises(UriError, match="empty folder name"):
            open_objects(Uri("s3://bucket/a//b"), 5.0)
