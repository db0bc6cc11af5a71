from __future__ import annotations

import hashlib
import multiprocessing
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipeline.model.architecture import KnownModel
from pipeline.model.architectures import KNOWN_MODELS
from pipeline.model.files import resolve
from pipeline.model.files.resolve import UnknownModelError, resolve_checkpoint
from pipeline.storage.download import cache, ranged
from pipeline.storage.download.cache import DownloadError, cache_directory, fetch_to_cache

OLD = bytes(range(256)) * 2000
NEW = OLD[::-1][:300_000]


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Serves `FileServer.content`; the next of `FileServer.tricks` may interfere."""

    protocol_version = "HTTP/1.1"
    server: FileServer

    def do_GET(self) -> None:
        self.server.requests.append(dict(self.headers))
        trick = self.server.tricks.pop(0) if self.server.tricks else None
        if not (trick and trick(self)):
            self.send_file()

    def send_file(self, end: int | None = None, obey_range: bool = True, obey_if_range: bool = True) -> None:
        """The file or the rest of it; with ``end``, hang up there."""
        content, etag = self.server.content, self.server.etag
        start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-")) if "Range" in self.headers else 0
        if not obey_range or (obey_if_range and self.headers.get("If-Range") != etag):
            start = 0
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if etag:
            self.send_header("ETag", etag)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start:end])
        self.close_connection = end is not None

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


Trick = Callable[[Handler], bool]  # True: it has answered


class FileServer(ThreadingHTTPServer):
    content = OLD
    etag: str | None = '"one"'
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.tricks: list[Trick] = []
        self.requests: list[dict[str, str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/weights.bin"

    def change(self) -> None:
        self.content, self.etag = NEW, '"two"'


def cut_after(end: int) -> Trick:
    def trick(handler: Handler) -> bool:
        handler.send_file(end=end)
        return True

    return trick


def status(code: int, **headers: str) -> Trick:
    def trick(handler: Handler) -> bool:
        handler.answer(code, **headers)
        return True

    return trick


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(cache, "FIRST_PAUSE_S", 0.001)
    with FileServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


class TestFetch:
    def test_arrives_whole_and_recorded(self, server: FileServer, tmp_path: Path) -> None:
        path = fetch_to_cache(server.url, "w.bin", sha256(OLD).upper(), tmp_path / "new" / "cache")
        assert path.read_bytes() == OLD
        assert sorted(p.name for p in path.parent.iterdir()) == ["w.bin", "w.bin.lock", "w.bin.sha256"]
        subprocess.run(["sha256sum", "--check", "--strict", "w.bin.sha256"], cwd=path.parent, check=True)

    def test_second_call_asks_nobody(self, server: FileServer, tmp_path: Path) -> None:
        for _ in range(2):
            fetch_to_cache(server.url, "w.bin", None, tmp_path)
        assert len(server.requests) == 1

    def test_complete_cache_may_be_read_only(self, server: FileServer, tmp_path: Path) -> None:
        path = fetch_to_cache(server.url, "w.bin", None, tmp_path)
        (tmp_path / "w.bin.lock").unlink()
        tmp_path.chmod(0o500)
        try:
            assert fetch_to_cache(server.url, "w.bin", None, tmp_path) == path
        finally:
            tmp_path.chmod(0o700)
        assert not (tmp_path / "w.bin.lock").exists()

    def test_wrong_checksum_is_not_kept(self, server: FileServer, tmp_path: Path) -> None:
        with pytest.raises(DownloadError, match=f"{sha256(OLD)}, expected {'0' * 64}"):
            fetch_to_cache(server.url, "w.bin", "0" * 64, tmp_path)
        assert [p.name for p in tmp_path.iterdir()] == ["w.bin.lock"]

    def test_truncated_file_in_the_cache_is_fetched_again(self, server: FileServer, tmp_path: Path) -> None:
        path = fetch_to_cache(server.url, "w.bin", None, tmp_path)
        path.write_bytes(OLD[:100])
        assert fetch_to_cache(server.url, "w.bin", None, tmp_path).read_bytes() == OLD

    def test_file_put_there_by_hand(self, tmp_path: Path) -> None:
        (tmp_path / "w.bin").write_bytes(OLD)
        for expected in (None, sha256(OLD)):
            assert fetch_to_cache("https://nowhere.invalid/w", "w.bin", expected, tmp_path).read_bytes() == OLD
        assert sha256(OLD) in (tmp_path / "w.bin.sha256").read_text()

    def test_wrong_file_put_there_by_hand(self, server: FileServer, tmp_path: Path) -> None:
        (tmp_path / "w.bin").write_bytes(b"something else")
        assert fetch_to_cache(server.url, "w.bin", sha256(OLD), tmp_path).read_bytes() == OLD

    def test_recorded_with_another_checksum_than_asked_for(self, server: FileServer, tmp_path: Path) -> None:
        fetch_to_cache(server.url, "w.bin", None, tmp_path)
        server.change()
        assert fetch_to_cache(server.url, "w.bin", None, tmp_path).read_bytes() == OLD
        assert fetch_to_cache(server.url, "w.bin", sha256(NEW), tmp_path).read_bytes() == NEW

    def test_file_of_unknown_length(self, server: FileServer, tmp_path: Path) -> None:
        def chunked(handler: Handler) -> bool:
            handler.send_response(200)
            handler.send_header("Transfer-Encoding", "chunked")
            handler.end_headers()
            for i in range(0, len(OLD), 100_000):
                piece = OLD[i : i + 100_000]
                handler.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
            handler.wfile.write(b"0\r\n\r\n")
            return True

        server.tricks = [chunked]
        assert fetch_to_cache(server.url, "w.bin", None, tmp_path).read_bytes() == OLD


class TestBrokenConnections:
    def test_continues_where_it_was_cut(self, server: FileServer, tmp_path: Path) -> None:
        server.tricks = [cut_after(200_000), cut_after(350_000)]
        assert fetch_to_cache(server.url, "w.bin", sha256(OLD), tmp_path).read_bytes() == OLD
        assert [request.get("Range") for request in server.requests] == [None, "bytes=200000-", "bytes=350000-"]

    def test_more_cuts_than_attempts_while_it_gets_further(self, server: FileServer, tmp_path: Path) -> None:
        server.tricks = [cut_after(50_000 * (i + 1)) for i in range(2 * cache.ATTEMPTS)]
        assert fetch_to_cache(server.url, "w.bin", None, tmp_path).read_bytes() == OLD

    def test_gives_up_without_progress_and_a_later_call_continues(self, server: FileServer, tmp_path: Path) -> None:
        server.tricks = [cut_after(1000)] + [status(503)] * cache.ATTEMPTS
        with pytest.raises(DownloadError, match="answered 503"):
            fetch_to_cache(server.url, "w.bin", None, tmp_path)
        assert (tmp_path / "w.bin.part").stat().st_size == 1000
        assert not (tmp_path / "w.bin").exists()
        server.requests.clear()
        server.tricks.clear()
        assert fetch_to_cache(server.url, "w.bin", sha256(OLD), tmp_path).read_bytes() == OLD
        assert server.requests[0]["Range"] == "bytes=1000-"

    def test_changed_file_is_not_glued(self, server: FileServer, tmp_path: Path) -> None:
        def cut_and_change(handler: Handler) -> bool:
            handler.send_file(end=200_000)
            server.change()
            return True

        server.tricks = [cut_and_change]
        assert fetch_to_cache(server.url, "w.bin", None, tmp_path).read_bytes() == NEW

    def test_changed_file_from_a_server_without_if_range(self, server: FileServer, tmp_path: Path) -> None:
        def cut_and_change(handler: Handler) -> bool:
            handler.send_file(end=200_000)
            server.change()
            return True

        def range_regardless(handler: Handler) -> bool:
            handler.send_file(obey_if_range=False)
            return True

        server.tricks = [cut_and_change, range_regardless]
        assert fetch_to_cache(server.url, "w.bin", None, tmp_path).read_bytes() == NEW

    def test_server_without_ranges(self, server: FileServer, tmp_path: Path) -> None:
        def whole(handler: Handler) -> bool:
            handler.send_file(obey_range=False)
            return True

        server.tricks = [cut_after(200_000), whole]
        assert fetch_to_cache(server.url, "w.bin", None, tmp_path).read_bytes() == OLD

    @pytest.mark.parametrize("etag", [None, 'W/"weak"'])
    def test_without_validator_it_begins_anew(self, server: FileServer, tmp_path: Path, etag: str | None) -> None:
        server.etag = etag
        server.tricks = [cut_after(200_000)]
        assert fetch_to_cache(server.url, "w.bin", None, tmp_path).read_bytes() == OLD
        assert "Range" not in server.requests[1]

    def test_part_of_another_url_is_not_continued(self, server: FileServer, tmp_path: Path) -> None:
        (tmp_path / "w.bin.part").write_bytes(NEW[:100])
        (tmp_path / "w.bin.part.json").write_text('{"url": "https://other.invalid/w", "validator": "\\"one\\""}')
        assert fetch_to_cache(server.url, "w.bin", None, tmp_path).read_bytes() == OLD

    @pytest.mark.parametrize("origin", ["", "[]", '{"url": 3}', "\x00"])
    def test_damaged_part_origin(self, server: FileServer, tmp_path: Path, origin: str) -> None:
        (tmp_path / "w.bin.part").write_bytes(NEW[:100])
        (tmp_path / "w.bin.part.json").write_text(origin)
        assert fetch_to_cache(server.url, "w.bin", None, tmp_path).read_bytes() == OLD

    def test_part_longer_than_the_file(self, server: FileServer, tmp_path: Path) -> None:
        server.tricks = [cut_after(1000), status(416)]
        assert fetch_to_cache(server.url, "w.bin", None, tmp_path).read_bytes() == OLD
        assert "Range" not in server.requests[2]


class TestAnswers:
    def test_503_then_ok(self, server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        pauses: list[float] = []
        monkeypatch.setattr(cache.time, "sleep", pauses.append)
        server.tricks = [status(503), status(429, Retry_After="7"), status(502, Retry_After="99999")]
        assert fetch_to_cache(server.url, "w.bin", None, tmp_path).read_bytes() == OLD
        assert pauses == [0.001, 7, cache.LONGEST_PAUSE_S]

    def test_404_is_not_repeated(self, server: FileServer, tmp_path: Path) -> None:
        server.tricks = [status(404)]
        with pytest.raises(DownloadError, match="404") as error:
            fetch_to_cache(server.url, "w.bin", None, tmp_path)
        assert len(server.requests) == 1
        assert server.url in str(error.value)
        assert str(tmp_path / "w.bin") in str(error.value)

    def test_web_page_is_no_file(self, server: FileServer, tmp_path: Path) -> None:
        def login_page(handler: Handler) -> bool:
            handler.answer(200, b"<html>please log in</html>", Content_Type="text/html; charset=utf-8")
            return True

        server.tricks = [login_page]
        with pytest.raises(DownloadError, match="web page"):
            fetch_to_cache(server.url, "w.bin", None, tmp_path)

    def test_no_connection(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setattr(cache, "FIRST_PAUSE_S", 0.001)
        with FileServer() as closed:
            url = closed.url
        with pytest.raises(DownloadError, match="no connection") as error:
            fetch_to_cache(url, "w.bin", None, tmp_path)
        assert url in str(error.value)
        assert f"put it at {tmp_path / 'w.bin'}" in str(error.value)

    def test_redirect_is_followed_with_its_range(self, server: FileServer, tmp_path: Path) -> None:
        redirect = status(302, Location="/elsewhere")
        server.tricks = [redirect, cut_after(1000), redirect]
        assert fetch_to_cache(server.url, "w.bin", None, tmp_path).read_bytes() == OLD
        assert server.requests[-1]["Range"] == "bytes=1000-"

    @pytest.mark.parametrize("target", ["http://example.invalid/w", "ftp://127.0.0.1/w", "file:///etc/hostname"])
    def test_redirect_away_from_https(self, server: FileServer, tmp_path: Path, target: str) -> None:
        server.tricks = [status(302, Location=target)]
        with pytest.raises(DownloadError, match=r"redirect|Redirect"):
            fetch_to_cache(server.url, "w.bin", None, tmp_path)
        assert len(server.requests) == 1


class TestArguments:
    @pytest.mark.parametrize(
        "url", ["http://example.com/w", "file:///etc/hostname", "ftp://a/b", "w.bin", "https:///w"]
    )
    def test_https_only(self, tmp_path: Path, url: str) -> None:
        with pytest.raises(ValueError, match="only https"):
            fetch_to_cache(url, "w.bin", None, tmp_path)

    @pytest.mark.parametrize("url", ["https://a.b/c", "http://127.0.0.1:80/w", "http://localhost/w", "http://[::1]/w"])
    def test_accepted(self, url: str) -> None:
        ranged.check_url(url)

    @pytest.mark.parametrize("name", ["../w", "a/b", "", ".."])
    def test_file_name_stays_in_the_cache(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(ValueError, match="plain file name"):
            fetch_to_cache("https://a.b/c", name, None, tmp_path)

    def test_cache_that_cannot_be_made(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(DownloadError, match="MASKFLEET_CACHE"):
            fetch_to_cache("https://a.b/c", "w.bin", None, tmp_path / "file" / "cache")

    def test_cache_directory(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", "/home/someone")
        monkeypatch.delenv("MASKFLEET_CACHE", raising=False)
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        assert cache_directory() == Path("/home/someone/.cache/maskfleet")
        monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
        assert cache_directory() == Path("/cache/maskfleet")
        monkeypatch.setenv("MASKFLEET_CACHE", "~/models")
        assert cache_directory() == Path("/home/someone/models")


def _fetch(url: str, directory: Path) -> bytes:
    return fetch_to_cache(url, "w.bin", None, directory).read_bytes()


class TestTwoProcesses:
    def test_one_downloads_the_other_waits(self, server: FileServer, tmp_path: Path) -> None:
        def slow(handler: Handler) -> bool:
            time.sleep(0.7)  # long enough for the other one to come
            return False

        server.tricks = [slow]
        with multiprocessing.get_context("spawn").Pool(2) as pool:
            results = [pool.apply_async(_fetch, (server.url, tmp_path)) for _ in range(2)]
            assert [result.get(30) for result in results] == [OLD, OLD]
        assert len(server.requests) == 1

    def test_killed_process_leaves_no_lock(self, server: FileServer, tmp_path: Path) -> None:
        arrived, hang = threading.Event(), threading.Event()

        def stall(handler: Handler) -> bool:
            arrived.set()
            hang.wait(30)
            return True

        server.tricks = [stall]
        process = multiprocessing.get_context("spawn").Process(target=_fetch, args=(server.url, tmp_path))
        process.start()
        assert arrived.wait(30)
        process.kill()
        process.join()
        hang.set()
        assert fetch_to_cache(server.url, "w.bin", None, tmp_path).read_bytes() == OLD


class TestResolveCheckpoint:
    @pytest.fixture
    def model(self, server: FileServer, monkeypatch: pytest.MonkeyPatch) -> KnownModel:
        known = KnownModel("swin_x", server.url, 1.0, 1.0, "Apache-2.0", sha256(OLD))
        monkeypatch.setitem(resolve.KNOWN_MODELS, "swin_x", known)
        return known

    def test_path_stays(self, tmp_path: Path) -> None:
        path = tmp_path / "weights.pth"
        path.touch()
        assert resolve_checkpoint(path) == path
        assert resolve_checkpoint(str(path)) == path

    def test_known_name_is_fetched(self, model: KnownModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MASKFLEET_CACHE", str(tmp_path / "cache"))
        assert resolve_checkpoint("swin_x") == tmp_path / "cache" / "swin_x.bin"
        assert resolve_checkpoint("swin_x", tmp_path / "other").read_bytes() == OLD

    def test_file_of_that_name_wins(
        self, model: KnownModel, server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        Path("swin_x").touch()
        assert resolve_checkpoint("swin_x") == Path("swin_x")
        assert server.requests == []

    def test_unknown(self, tmp_path: Path) -> None:
        with pytest.raises(UnknownModelError, match=r"Did you mean swin_b_coco\?") as error:
            resolve_checkpoint("swin_b_cocoo")
        assert all(name in str(error.value) for name in KNOWN_MODELS)
        with pytest.raises(UnknownModelError, match="neither a file nor a known model"):
            resolve_checkpoint(tmp_path / "missing.pth")
        with pytest.raises(UnknownModelError, match="is a directory"):
            resolve_checkpoint(tmp_path)
