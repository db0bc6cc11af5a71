from __future__ import annotations

import hashlib
import logging
import multiprocessing
import subprocess
import sys
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
from pipeline.storage import download
from pipeline.storage.download import DownloadError, cache_directory, fetch_to_cache
from pipeline.storage.uris import UriText

OLD = bytes(range(256)) * 2000
NEW = OLD[::-1][:300_000]
LOOPBACK = "http://127.0.0.1:"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Serves `FileServer.content`; the next of `FileServer.tricks` may interfere."""

    protocol_version = "HTTP/1.1"
    server: FileServer

    def do_GET(self) -> None:
        self.server.requests.append(dict(self.headers))
        trick = self.server.tricks.pop(0) if self.server.tricks else Handler.send_file
        trick(self)

    def send_file(self, end: int | None = None, obey_range: bool = True, obey_if_range: bool = True) -> None:
        """The file or the rest of it; with ``end``, hang up there."""
        content, etag = self.server.content, self.server.etag
        start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-")) if "Range" in self.headers else 0
        if not obey_range or (obey_if_range and self.headers.get("If-Range") != etag):
            start = 0
        headers = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {}
        headers |= {"ETag": etag} if etag else {}
        self.answer(206 if start else 200, content[start:], end and end - start, **headers)

    def answer(self, status: int, body: bytes = b"", end: int | None = None, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:end])
        self.close_connection = end is not None

    def log_message(self, format: str, *args: object) -> None:
        pass


class FileServer(ThreadingHTTPServer):
    content = OLD
    etag: str | None = '"one"'
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.tricks: list[Callable[[Handler], None]] = []
        self.requests: list[dict[str, str]] = []

    @property
    def url(self) -> str:
        return f"{LOOPBACK}{self.server_port}/weights.bin"

    def change(self) -> None:
        self.content, self.etag = NEW, '"two"'

    def cut_and_change(self, handler: Handler) -> None:
        handler.send_file(end=200_000)
        self.change()

    def ranges_asked_for(self) -> list[str | None]:
        return [request.get("Range") for request in self.requests]


def cut_after(end: int) -> Callable[[Handler], None]:
    return lambda handler: handler.send_file(end=end)


def status(code: int, body: bytes = b"", **headers: str) -> Callable[[Handler], None]:
    return lambda handler: handler.answer(code, body, **headers)


@pytest.fixture
def loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    monkeypatch.setattr(download, "SCHEME", LOOPBACK)
    monkeypatch.setattr(download, "PAUSES_S", (0.001,) * 4)
    monkeypatch.setattr(download, "BLOCK_BYTES", 1000)


@pytest.fixture
def server(loopback: None) -> Iterator[FileServer]:
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
        with pytest.raises(DownloadError, match=f"expected {'0' * 64} but got {sha256(OLD)}") as error:
            fetch_to_cache(server.url, "w.bin", "0" * 64, tmp_path)
        assert server.url in str(error.value)
        assert [p.name for p in tmp_path.iterdir()] == ["w.bin.lock"]

    @pytest.mark.parametrize("damaged", [OLD[:100], OLD[:-1] + b"x"], ids=["cut", "changed"])
    def test_damaged_file_in_the_cache_is_fetched_again(
        self, server: FileServer, tmp_path: Path, damaged: bytes
    ) -> None:
        path = fetch_to_cache(server.url, "w.bin", None, tmp_path)
        path.write_bytes(damaged)
        assert fetch_to_cache(server.url, "w.bin", None, tmp_path).read_bytes() == OLD

    def test_another_file_than_recorded_is_refused(self, server: FileServer, tmp_path: Path) -> None:
        fetch_to_cache(server.url, "w.bin", None, tmp_path).unlink()
        server.change()
        with pytest.raises(DownloadError, match=r"does not match.* the one in .*w\.bin\.sha256"):
            fetch_to_cache(server.url, "w.bin", None, tmp_path)
        (tmp_path / "w.bin.sha256").unlink()
        assert fetch_to_cache(server.url, "w.bin", None, tmp_path).read_bytes() == NEW

    def test_recorded_with_another_checksum_than_asked_for(self, server: FileServer, tmp_path: Path) -> None:
        fetch_to_cache(server.url, "w.bin", None, tmp_path)
        server.change()
        assert fetch_to_cache(server.url, "w.bin", None, tmp_path).read_bytes() == OLD
        assert fetch_to_cache(server.url, "w.bin", sha256(NEW), tmp_path).read_bytes() == NEW
        assert sha256(NEW) in (tmp_path / "w.bin.sha256").read_text()

    def test_file_put_there_by_hand(self, tmp_path: Path) -> None:
        (tmp_path / "w.bin").write_bytes(OLD)
        for expected in (None, sha256(OLD)):
            assert fetch_to_cache("https://nowhere.invalid/w", "w.bin", expected, tmp_path).read_bytes() == OLD
        assert sha256(OLD) in (tmp_path / "w.bin.sha256").read_text()

    def test_wrong_file_put_there_by_hand(self, server: FileServer, tmp_path: Path) -> None:
        (tmp_path / "w.bin").write_bytes(b"something else")
        assert fetch_to_cache(server.url, "w.bin", sha256(OLD), tmp_path).read_bytes() == OLD

    @pytest.mark.parametrize("record", ["", "\x00", f"# size_bytes 512000\n# from somewhere\n{sha256(OLD)}  w.bin\n"])
    def test_record_damaged_or_with_comments(self, tmp_path: Path, record: str) -> None:
        (tmp_path / "w.bin").write_bytes(OLD)
        (tmp_path / "w.bin.sha256").write_text(record)
        assert fetch_to_cache("https://nowhere.invalid/w", "w.bin", None, tmp_path).read_bytes() == OLD

    def test_file_of_unknown_length(self, server: FileServer, tmp_path: Path) -> None:
        def chunked(handler: Handler) -> None:
            handler.send_response(200)
            handler.send_header("Transfer-Encoding", "chunked")
            handler.end_headers()
            for i in range(0, len(OLD), 100_000):
                piece = OLD[i : i + 100_000]
                handler.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
            handler.wfile.write(b"0\r\n\r\n")

        server.tricks = [chunked]
        assert fetch_to_cache(server.url, "w.bin", None, tmp_path).read_bytes() == OLD


class TestProgress:
    def test_bar_at_a_terminal(
        self, server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
        fetch_to_cache(server.url, "w.bin", None, tmp_path)
        assert "w.bin: 100%" in capsys.readouterr().err

    def test_lines_in_a_log(
        self,
        server: FileServer,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        server.content = bytes(3 << 20)
        monkeypatch.setattr(download, "BLOCK_BYTES", 1 << 20)
        monkeypatch.setattr(download, "LOG_EVERY_S", 0.0)
        with caplog.at_level(logging.INFO, download.__name__):
            fetch_to_cache(server.url, "w.bin", None, tmp_path)
        assert caplog.messages == [f"w.bin: {i} of 3 MB" for i in (1, 2, 3)]
        assert capsys.readouterr().err == ""


class TestBrokenConnections:
    def test_continues_where_it_was_cut(self, server: FileServer, tmp_path: Path) -> None:
        server.tricks = [cut_after(200_000), cut_after(350_000)]
        assert fetch_to_cache(server.url, "w.bin", sha256(OLD), tmp_path).read_bytes() == OLD
        assert server.ranges_asked_for() == [None, "bytes=200000-", "bytes=350000-"]

    def test_more_cuts_than_attempts_while_it_gets_further(self, server: FileServer, tmp_path: Path) -> None:
        server.tricks = [cut_after(50_000 * (i + 1)) for i in range(2 * len(download.PAUSES_S))]
        assert fetch_to_cache(server.url, "w.bin", None, tmp_path).read_bytes() == OLD

    def test_gives_up_without_progress_and_a_later_call_continues(self, server: FileServer, tmp_path: Path) -> None:
        server.tricks = [cut_after(1000)] + [status(503)] * 5
        with pytest.raises(DownloadError, match="503"):
            fetch_to_cache(server.url, "w.bin", None, tmp_path)
        assert (tmp_path / "w.bin.part").stat().st_size == 1000
        assert not (tmp_path / "w.bin").exists()
        server.requests.clear()
        server.tricks.clear()
        assert fetch_to_cache(server.url, "w.bin", sha256(OLD), tmp_path).read_bytes() == OLD
        assert server.ranges_asked_for() == ["bytes=1000-"]

    @pytest.mark.parametrize("obey_if_range", [True, False])
    def test_changed_file_is_not_glued(self, server: FileServer, tmp_path: Path, obey_if_range: bool) -> None:
        server.tricks = [server.cut_and_change, lambda handler: handler.send_file(obey_if_range=obey_if_range)]
        assert fetch_to_cache(server.url, "w.bin", None, tmp_path).read_bytes() == NEW

    def test_server_without_ranges(self, server: FileServer, tmp_path: Path) -> None:
        server.tricks = [cut_after(200_000), lambda handler: handler.send_file(obey_range=False)]
        assert fetch_to_cache(server.url, "w.bin", None, tmp_path).read_bytes() == OLD

    @pytest.mark.parametrize("etag", [None, 'W/"weak"'])
    def test_without_validator_it_begins_anew(self, server: FileServer, tmp_path: Path, etag: str | None) -> None:
        server.etag = etag
        server.tricks = [cut_after(200_000)]
        assert fetch_to_cache(server.url, "w.bin", None, tmp_path).read_bytes() == OLD
        assert server.ranges_asked_for() == [None, None]

    @pytest.mark.parametrize("etag", [None, "", '"of another URL"', "\x00"])
    def test_part_of_unknown_origin_is_not_continued(
        self, server: FileServer, tmp_path: Path, etag: str | None
    ) -> None:
        (tmp_path / "w.bin.part").write_bytes(NEW[:100])
        if etag is not None:
            (tmp_path / "w.bin.part.etag").write_text(etag)
        assert fetch_to_cache(server.url, "w.bin", None, tmp_path).read_bytes() == OLD

    def test_part_longer_than_the_file(self, server: FileServer, tmp_path: Path) -> None:
        server.tricks = [cut_after(1000), status(416)]
        assert fetch_to_cache(server.url, "w.bin", None, tmp_path).read_bytes() == OLD
        assert server.ranges_asked_for() == [None, "bytes=1000-", None]


class TestAnswers:
    @pytest.mark.parametrize("code", [429, 500, 502, 503])
    def test_asks_again(self, server: FileServer, tmp_path: Path, code: int) -> None:
        server.tricks = [status(code)] * 4
        assert fetch_to_cache(server.url, "w.bin", None, tmp_path).read_bytes() == OLD

    @pytest.mark.parametrize(("code", "requests"), [(403, 1), (404, 1), (500, 5)])
    def test_says_what_was_answered(self, server: FileServer, tmp_path: Path, code: int, requests: int) -> None:
        server.tricks = [status(code)] * requests
        with pytest.raises(DownloadError, match=str(code)) as error:
            fetch_to_cache(server.url, "w.bin", None, tmp_path)
        assert len(server.requests) == requests
        assert server.url in str(error.value)
        assert f"put it at {tmp_path / 'w.bin'}" in str(error.value)

    def test_web_page_is_no_file(self, server: FileServer, tmp_path: Path) -> None:
        server.tricks = [status(200, b"<html>please log in</html>", Content_Type="text/html; charset=utf-8")]
        with pytest.raises(DownloadError, match="web page"):
            fetch_to_cache(server.url, "w.bin", None, tmp_path)
        assert not (tmp_path / "w.bin").exists()

    def test_no_connection(self, loopback: None, tmp_path: Path) -> None:
        with FileServer() as closed:
            url = closed.url
        with pytest.raises(DownloadError, match="no connection") as error:
            fetch_to_cache(url, "w.bin", None, tmp_path)
        assert url in str(error.value)
        assert f"put it at {tmp_path / 'w.bin'}" in str(error.value)

    @pytest.mark.parametrize("scheme", ["http://", "", "ftp://", "http://[", "http://h:"])
    def test_no_password_of_the_proxy(
        self, loopback: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str
    ) -> None:
        monkeypatch.setenv("https_proxy", f"{scheme}user:hunter2@127.0.0.1:9")
        with pytest.raises(DownloadError) as error:
            fetch_to_cache("https://nowhere.invalid/w", "w.bin", None, tmp_path)
        assert "hunter2" not in str(error.value)

    def test_redirect_is_followed_with_its_range(self, server: FileServer, tmp_path: Path) -> None:
        redirect = status(302, Location="/elsewhere")
        server.tricks = [redirect, cut_after(1000), redirect]
        assert fetch_to_cache(server.url, "w.bin", None, tmp_path).read_bytes() == OLD
        assert server.ranges_asked_for() == [None, None, "bytes=1000-", "bytes=1000-"]

    def test_signature_in_a_redirect_stays_out(self, server: FileServer, tmp_path: Path) -> None:
        server.tricks = [status(302, Location="/elsewhere?signature=hunter2"), status(403)]
        with pytest.raises(DownloadError, match="403") as error:
            fetch_to_cache(server.url, "w.bin", None, tmp_path)
        assert "hunter2" not in str(error.value)

    @pytest.mark.parametrize("target", ["http://localhost:{port}/w", "ftp://127.0.0.1/w", "file:///etc/hostname"])
    def test_redirect_away_from_https(self, server: FileServer, tmp_path: Path, target: str) -> None:
        server.tricks = [status(302, Location=target.format(port=server.server_port))] * 5
        with pytest.raises(DownloadError, match=r"not https|not valid"):
            fetch_to_cache(server.url, "w.bin", None, tmp_path)
        assert not (tmp_path / "w.bin").exists()
        assert len(server.requests) == 1, "the target was contacted, or the source asked again"

    @pytest.mark.parametrize("url", ["http://example.com/w", "file:///etc/hostname", "ftp://a/b"])
    def test_only_https(self, tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(download, "SCHEME", "https://")
        with pytest.raises(DownloadError, match="not https"):
            fetch_to_cache(url, "w.bin", None, tmp_path)


class TestCache:
    def test_that_cannot_be_made(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(DownloadError, match="MASKFLEET_CACHE"):
            fetch_to_cache("https://a.b/c", "w.bin", None, tmp_path / "file" / "cache")

    def test_directory(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", "/home/someone")
        monkeypatch.delenv("MASKFLEET_CACHE", raising=False)
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        assert cache_directory() == Path("/home/someone/.cache/maskfleet")
        monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
        assert cache_directory() == Path("/cache/maskfleet")
        monkeypatch.setenv("MASKFLEET_CACHE", "~/models")
        assert cache_directory() == Path("/home/someone/models")


def _fetch(url: str, directory: Path) -> bytes:
    download.SCHEME = LOOPBACK
    return fetch_to_cache(url, "w.bin", None, directory).read_bytes()


class TestTwoProcesses:
    def test_one_downloads_the_other_waits(self, server: FileServer, tmp_path: Path) -> None:
        def slow(handler: Handler) -> None:
            time.sleep(0.7)  # long enough for the other one to come
            handler.send_file()

        server.tricks = [slow]
        with multiprocessing.get_context("spawn").Pool(2) as pool:
            results = [pool.apply_async(_fetch, (server.url, tmp_path)) for _ in range(2)]
            assert [result.get(30) for result in results] == [OLD, OLD]
        assert len(server.requests) == 1

    def test_killed_process_leaves_no_lock(self, server: FileServer, tmp_path: Path) -> None:
        arrived, hang = threading.Event(), threading.Event()

        def stall(handler: Handler) -> None:
            arrived.set()
            hang.wait(30)

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
        assert resolve_checkpoint(UriText(str(path))) == path

    def test_known_name_is_fetched(self, model: KnownModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MASKFLEET_CACHE", str(tmp_path / "cache"))
        assert resolve_checkpoint(UriText("swin_x")) == tmp_path / "cache" / "swin_x.bin"
        assert resolve_checkpoint(UriText("swin_x"), tmp_path / "other").read_bytes() == OLD

    def test_file_of_that_name_wins(
        self, model: KnownModel, server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        Path("swin_x").touch()
        assert resolve_checkpoint(UriText("swin_x")) == Path("swin_x")
        assert server.requests == []

    def test_unknown(self, tmp_path: Path) -> None:
        with pytest.raises(UnknownModelError, match=r"Did you mean swin_b_coco\?") as error:
            resolve_checkpoint(UriText("swin_b_cocoo"))
        assert all(name in str(error.value) for name in KNOWN_MODELS)
        with pytest.raises(UnknownModelError, match="neither a file nor a known model"):
            resolve_checkpoint(UriText(str(tmp_path / "missing.pth")))
        with pytest.raises(UnknownModelError, match="is a directory"):
            resolve_checkpoint(UriText(str(tmp_path)))

    def test_secrets_of_a_uri_are_not_repeated(self) -> None:
        with pytest.raises(UnknownModelError, match=r"'https://host/model\.pth' is neither") as error:
            resolve_checkpoint(UriText("https://user:SECRET@host/model.pth?sig=SECRET"))
        assert "SECRET" not in str(error.value)
