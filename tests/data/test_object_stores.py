from __future__ import annotations

import os
import re
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipeline.data import object_stores
from pipeline.data.object_stores import FsspecObjects, open_objects
from pipeline.data.objects import Changed, Objects
from pipeline.data.uris import UriError
from tests.s3_server import S3Server, s3_environment_variables, s3_server


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with s3_server() as server:
        server.create_bucket("bucket")
        yield server


@pytest.fixture(params=["local", "s3", "memory", "moved"])
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> Objects:
    """``moved``: an fsspec file system without atomic puts."""
    if request.param == "local":
        return open_objects(str(tmp_path / "new folder" / "out"), 10.0)
    if request.param == "moved":
        import fsspec

        return FsspecObjects(fsspec.filesystem("memory"), f"/{uuid.uuid4().hex}", atomic_puts=False)
    if request.param == "memory":
        return open_objects(f"memory://{uuid.uuid4().hex}/out", 10.0)
    request.getfixturevalue("s3")
    return open_objects(f"s3://bucket/{uuid.uuid4().hex}/a b=%20/out/", 10.0)


class TestEveryStore:
    def test_write_read_list_delete(self, objects: Objects) -> None:
        assert objects.list("data") == ([], [])
        objects.put("data/b", b"bb")
        objects.put("data/a", b"x" * 1000)
        objects.put("data/deeper/c", b"c")
        objects.put("run.json", b"{}")
        files, folders = objects.list("data")
        assert [(f.name, f.size_bytes) for f in files] == [("a", 1000), ("b", 2)]
        assert folders == ["deeper"]
        files, folders = objects.list("")
        assert [f.name for f in files] == ["run.json"]
        assert folders == ["data"]
        assert objects.read("data/b")[0] == b"bb"
        objects.put("data/b", b"0123456789")
        assert objects.read_range("data/b", 2, 5) == b"234"
        with objects.open("data/b", 10) as file:
            assert file.size() == 10
            file.seek(7)
            assert file.read() == b"789"
        for _ in range(2):
            objects.delete("data/b")
        assert [f.name for f in objects.list("data").files] == ["a"]
        with pytest.raises(FileNotFoundError):
            objects.read("data/b")

    def test_a_listing_tells_versions_apart(self, objects: Objects) -> None:
        objects.put("data/a", b"1")
        before = objects.list("data").files
        objects.put("data/a", b"2")
        assert objects.list("data").files != before

    def test_create_and_replace(self, objects: Objects) -> None:
        first = objects.create("lock", b"1")
        with pytest.raises(FileExistsError):
            objects.create("lock", b"2")
        assert objects.read("lock") == (b"1", first)
        second = objects.replace("lock", b"2", first)
        with pytest.raises(Changed):
            objects.replace("lock", b"3", first)
        assert objects.read("lock") == (b"2", second)
        objects.delete("lock")
        with pytest.raises(Changed):
            objects.replace("lock", b"3", second)
        assert objects.create("lock", b"4") == objects.read("lock")[1]


@pytest.mark.parametrize("objects", ["local", "s3"], indirect=True)
class TestConcurrency:
    def test_one_of_many_creates(self, objects: Objects) -> None:
        def create(number: int) -> bool:
            try:
                objects.create("lock", b"%d" % number)
            except FileExistsError:
                return False
            return True

        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(create, range(8))) == 1

    def test_one_of_many_replaces(self, objects: Objects, monkeypatch: pytest.MonkeyPatch) -> None:
        rename = os.replace

        def late_rename(source: str, target: str) -> None:
            time.sleep(0.01)  # the time between look and change, in which the others look
            rename(source, target)

        monkeypatch.setattr(os, "replace", late_rename)

        def replace(version: str, number: int) -> bool:
            try:
                objects.replace("lock", b"%d" % number, version)
            except Changed:
                return False
            return True

        for turn in range(5):
            objects.put("lock", b"old %d" % turn)
            version = objects.read("lock")[1]
            with ThreadPoolExecutor(8) as pool:
                assert sum(pool.map(lambda n, v=version: replace(v, n), range(8))) == 1


class TestLocal:
    def test_a_failed_write_leaves_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        objects = open_objects(str(tmp_path), 1.0)
        objects.put("a", b"old")
        monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "no space left")))
        with pytest.raises(OSError, match="no space"):
            objects.put("a", b"new")
        assert os.listdir(tmp_path) == ["a"]
        assert objects.read("a")[0] == b"old"

    def test_without_hard_links(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(source: str, target: str) -> None:
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(os, "link", refuse)
        objects = open_objects(str(tmp_path), 1.0)
        version = objects.create("lock", b"1")
        assert objects.read("lock") == (b"1", version)
        with pytest.raises(FileExistsError):
            objects.create("lock", b"2")
        assert os.listdir(tmp_path) == ["lock"]


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
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with s3_environment_variables(f"http://127.0.0.1:{server.server_port}"):
            yield handler
    finally:
        server.shutdown()
        server.server_close()


class TestS3Faults:
    @pytest.fixture(autouse=True)
    def _no_waits(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(object_stores, "BACKOFF_BASE_S", 0.001)

    def test_a_file_is_one_request(self) -> None:
        with faulty_s3([]) as server:
            open_objects("s3://bucket/out", 5.0).put("data/a", b"x" * 20_000_000)
            assert server.requests == ["PUT"]
            assert server.stored["/bucket/out/data/a"] == b"x" * 20_000_000

    def test_what_can_pass_is_tried_again(self) -> None:
        with faulty_s3([(503, False), (500, False), (429, False)]) as server:
            open_objects("s3://bucket/out", 5.0).put("a", b"1")
            assert server.stored == {"/bucket/out/a": b"1"}
            assert len(server.requests) == 4

    @pytest.mark.parametrize("status", [500, 503])
    def test_a_lost_answer_to_a_conditional_write(self, status: int) -> None:
        with faulty_s3([(status, True)]) as server:
            objects = open_objects("s3://bucket/out", 5.0)
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
                open_objects("s3://bucket/out", 5.0, max_attempts=3).put("a", b"1")
            assert len(server.requests) == attempts
        assert re.match(rf"s3://bucket/out: HTTP {status} at attempt {attempts}", str(caught.value))
        assert "AWSAccessKeyId" not in str(caught.value)

    def test_no_such_bucket(self, s3: S3Server) -> None:
        objects = open_objects("s3://no-such-bucket/out", 5.0)
        for call in (lambda: objects.put("a", b""), lambda: objects.create("a", b""), lambda: objects.list("data")):
            with pytest.raises(FileNotFoundError, match="no such bucket"):
                call()

    def test_empty_folder_names(self) -> None:
        with pytest.raises(UriError, match="empty folder name"):
            open_objects("s3://bucket/a//b", 5.0)
