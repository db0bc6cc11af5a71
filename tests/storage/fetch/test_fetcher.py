"""A real S3 server for the good days, a hand-made one for the bad ones."""

from __future__ import annotations

import asyncio
import os
import pickle
import random
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.storage import filesystems
from pipeline.storage.access import AccessPolicy
from pipeline.storage.backoff import Backoff
from pipeline.storage.fetch import fetcher as fetch_module
from pipeline.storage.fetch.fetcher import Fetcher
from pipeline.storage.fetch.rules import Allowance, ByteBudget, Fetched, FetchError, FetchSettings, NoRoom
from pipeline.storage.uris import TarMember, Uri, UriText
from pipeline.storage.versions import ObjectVersion
from testing.s3_server import S3Server
from tests.storage.flaky_server import BODY, QUICK, SECRET, SHORT_TIMEOUT_S, FlakyServer, error_of, fetcher

RUNS_OUT_OF_TIME = {"silent", "drip", "dripheader"}


BAD_DAYS = [
    # behaviour, code, requests made with at most three attempts
    ("503", "throttled", 3),
    ("429", "throttled", 3),
    ("500", "unavailable", 3),
    ("502", "unavailable", 3),
    ("reset", "unavailable", 3),
    ("short", "unavailable", 3),
    ("garbage", "unavailable", 3),
    ("silent", "timeout", 3),
    ("drip", "timeout", 3),
    ("dripheader", "timeout", 3),
    ("404", "not_found", 1),
    ("403", "access_denied", 1),
    ("401", "access_denied", 1),
    ("416", "rejected", 1),
    ("huge", "too_large", 1),
]


def in_order(fetcher: Fetcher, uris: list[UriText]) -> list[bytes | FetchError]:
    found = (each for _, each in sorted(fetcher.fetch_in_turn(uris), key=lambda found: found[0]))
    return [each if isinstance(each, FetchError) else each.data for each in found]


@pytest.mark.parametrize("protocol", ["s3", "http"])
class TestBothProtocols:
    def uri(self, flaky: FlakyServer, protocol: str, name: str) -> str:
        return f"s3://bucket/{name}" if protocol == "s3" else f"{flaky.url}/bucket/{name}"

    def test_good_object_is_one_request(self, flaky: FlakyServer, protocol: str) -> None:
        assert fetcher(flaky).fetch(UriText(self.uri(flaky, protocol, "ok"))).data == BODY
        assert flaky.requests == {"GET /bucket/ok": 1}

    def test_empty_object(self, flaky: FlakyServer, protocol: str) -> None:
        assert fetcher(flaky).fetch(UriText(self.uri(flaky, protocol, "empty"))).data == b""

    @pytest.mark.parametrize(("behaviour", "code", "requests"), BAD_DAYS)
    def test_bad_days(self, flaky: FlakyServer, protocol: str, behaviour: str, code: str, requests: int) -> None:
        timeout_s = SHORT_TIMEOUT_S if behaviour in RUNS_OUT_OF_TIME else QUICK.attempt_timeout_s
        started = time.monotonic()
        error = error_of(fetcher(flaky, attempt_timeout_s=timeout_s), self.uri(flaky, protocol, behaviour))
        assert time.monotonic() - started < 2.5
        assert error.code == code
        assert error.retryable == (requests > 1)
        assert flaky.requests == {f"GET /bucket/{behaviour}": requests}
        assert flaky.poured_bytes < 64 << 20

    @pytest.mark.parametrize("behaviour", ["503", "500", "reset", "short", "silent", "drip"])
    def test_recovers(self, flaky: FlakyServer, protocol: str, behaviour: str) -> None:
        timeout_s = SHORT_TIMEOUT_S if behaviour in RUNS_OUT_OF_TIME else QUICK.attempt_timeout_s
        patient = fetcher(flaky, attempt_timeout_s=timeout_s)
        assert patient.fetch(UriText(self.uri(flaky, protocol, f"{behaviour}-then-ok-2"))).data == BODY
        assert flaky.requests.total() == 3

    def test_size_limit_is_inclusive(self, flaky: FlakyServer, protocol: str) -> None:
        uri = self.uri(flaky, protocol, "ok")
        assert fetcher(flaky, max_object_bytes=len(BODY)).fetch(UriText(uri)).data == BODY
        assert error_of(fetcher(flaky, max_object_bytes=len(BODY) - 1), uri).code == "too_large"

    def test_deadline_bounds_all_attempts(self, flaky: FlakyServer, protocol: str) -> None:
        limited = fetcher(flaky, attempt_timeout_s=SHORT_TIMEOUT_S, deadline_s=1.0, max_attempts=100)
        started = time.monotonic()
        assert error_of(limited, self.uri(flaky, protocol, "drip")).code == "timeout"
        assert time.monotonic() - started < 1.3
        assert flaky.requests.total() <= 2

    def test_dead_endpoint(self, flaky: FlakyServer, protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            dead = f"http://127.0.0.1:{closed.getsockname()[1]}"
        monkeypatch.setenv("AWS_ENDPOINT_URL", dead)
        policy = AccessPolicy((Uri("s3://bucket"), Uri(dead)))
        uri = "s3://bucket/a" if protocol == "s3" else f"{dead}/a"
        assert error_of(Fetcher(QUICK, policy), uri).code == "unavailable"

    def test_many(self, flaky: FlakyServer, protocol: str) -> None:
        names = ["ok", "404", "reset", "ok.2", "silent", "503-then-ok-1", "huge", "ok.3"]
        impatient = fetcher(flaky, attempt_timeout_s=SHORT_TIMEOUT_S)
        results = in_order(impatient, [UriText(uri) for uri in [self.uri(flaky, protocol, name) for name in names]])
        codes = [result.code if isinstance(result, FetchError) else result == BODY for result in results]
        assert codes == [True, "not_found", "unavailable", True, "timeout", True, "too_large", True]
        assert all(e.__traceback__ is None and e.__context__ is None for e in results if isinstance(e, FetchError))

    def test_many_keep_their_order_and_share_one_client(self, flaky: FlakyServer, protocol: str) -> None:
        uris = [self.uri(flaky, protocol, f"ok.{index}") for index in range(100)]
        assert in_order(fetcher(flaky, fetch_concurrency=16), [UriText(uri) for uri in uris]) == [BODY] * 100
        assert set(flaky.requests.values()) == {1}
        assert len(flaky.requests) == 100


@pytest.mark.parametrize("place", ["s3", "s3, a key that obstore cannot say", "http"])
class TestMembersOfShards:
    def uri(self, flaky: FlakyServer, place: str, name: str) -> str:
        folder = {"s3": "s3://bucket/", "http": f"{flaky.url}/bucket/"}.get(place, "s3://bucket/a//")
        return TarMember(folder + name, 1000, 5000).text

    def fetcher(self, flaky: FlakyServer, place: str, behaviour: str = "") -> Fetcher:
        timeout_s = SHORT_TIMEOUT_S if behaviour in ("halfdrip", "halfsilent") else QUICK.attempt_timeout_s
        return fetcher(flaky if place == "http" else None, attempt_timeout_s=timeout_s)

    @pytest.mark.parametrize("behaviour", ["halfshort", "halfreset", "halfdrip", "halfsilent", "503"])
    def test_a_connection_that_breaks_in_it(self, flaky: FlakyServer, place: str, behaviour: str) -> None:
        patient = self.fetcher(flaky, place, behaviour)
        found = patient.fetch(UriText(self.uri(flaky, place, f"{behaviour}-then-ok-2")))
        assert found.data == BODY[1000:6000]
        assert flaky.requests.total() == 3
        code = {"503": "throttled", "halfdrip": "timeout", "halfsilent": "timeout"}.get(behaviour, "unavailable")
        assert error_of(patient, self.uri(flaky, place, behaviour)).code == code
        assert flaky.requests.total() == 6

    def test_a_server_that_knows_no_ranges(self, flaky: FlakyServer, place: str) -> None:
        error = error_of(self.fetcher(flaky, place), self.uri(flaky, place, "whole"))
        assert (error.code, error.retryable) == ("no_ranges", False)
        assert flaky.requests.total() == 1

    def test_too_large(self, flaky: FlakyServer, place: str) -> None:
        small = replace(self.fetcher(flaky, place), settings=QUICK.model_copy(update={"max_object_bytes": 4999}))
        assert error_of(small, self.uri(flaky, place, "ok")).code == "too_large"
        assert not flaky.requests


class TestS3:
    def test_against_a_real_server(self, s3: S3Server) -> None:
        names = ["a.jpg", "deep/er/a b+c.jpg", "what?#%20.jpg", "ünï/çødé.jpg", "a=b&c;d.jpg"]
        uris = [s3.put("bucket", name, name.encode()) for name in names]
        s3.put("bucket", "denied/x", b"x")
        s3.deny("bucket", "denied/")
        uris += ["s3://bucket/none", "s3://no-such-bucket/x", "s3://bucket/denied/x", "s3a://bucket/a.jpg"]
        results = in_order(Fetcher(), [UriText(uri) for uri in uris])
        assert results[: len(names)] == [name.encode() for name in names]
        codes = [result.code if isinstance(result, FetchError) else result for result in results[len(names) :]]
        assert codes == ["not_found", "not_found", "access_denied", b"a.jpg"]

    def test_keys_that_obstore_cannot_say(self, s3: S3Server) -> None:
        names = ("a//b.jpg", "/leading.jpg", "p/./dot.jpg", "p/x/../up.jpg", "p/http://127.0.0.1/x.jpg", "..")
        for name in names:
            assert Fetcher().fetch(UriText(s3.put("bucket", name, name.encode()))).data == name.encode()
        assert error_of(Fetcher(), "s3://bucket/none//b").code == "not_found"
        small = Fetcher(FetchSettings(max_object_bytes=3))
        assert error_of(small, "s3://bucket/a//b.jpg").code == "too_large"
        s3.put("bucket", "locked//x", b"x")
        s3.deny("bucket", "locked/")
        assert error_of(Fetcher(), "s3://bucket/locked//x").code == "access_denied"
        assert error_of(Fetcher(), "s3://no-such-bucket/a//b").code == "not_found"

    def test_a_literal_key_costs_no_more_time(self, flaky: FlakyServer) -> None:
        for path in ("a//silent", "a//drip"):
            started = time.monotonic()
            error = error_of(fetcher(max_attempts=1, attempt_timeout_s=0.4), f"s3://bucket/{path}")
            assert error.code == "timeout"
            assert time.monotonic() - started < 2

    @pytest.mark.parametrize("uri", ["s3://bucket", "s3://bucket/", "s3://bucket/folder/"])
    def test_folders(self, flaky: FlakyServer, uri: str) -> None:
        assert error_of(fetcher(), uri).code == "not_a_file"
        assert not flaky.requests

    def test_unsigned_requests(self, flaky: FlakyServer, monkeypatch: pytest.MonkeyPatch) -> None:
        fetcher().fetch(UriText("s3://bucket/ok"))
        assert flaky.authorizations.pop().startswith("AWS4-HMAC-SHA256")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_NO_SIGN_REQUEST", "1")
        fetcher().fetch(UriText("s3://bucket/ok"))
        assert flaky.authorizations == [""]

    def test_keys_of_a_profile(self, s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        uri = s3.put("bucket", "profile", b"x")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        profile = tmp_path / "credentials"
        profile.write_text("[me]\naws_access_key_id = AKIADUMMY\naws_secret_access_key = dummy\n")
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(profile))
        monkeypatch.setenv("AWS_PROFILE", "me")
        assert Fetcher().fetch(UriText(uri)).data == b"x"
        monkeypatch.setenv("AWS_PROFILE", "nobody")
        filesystems._s3_store.cache_clear()
        assert error_of(fetcher(), uri).code == "access_denied"

    def test_service_specific_endpoint_wins(self, flaky: FlakyServer, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", flaky.url)
        assert fetcher().fetch(UriText("s3://bucket/ok")).data == BODY

    @pytest.mark.parametrize("behaviour", ["redirect301", "badregion"])
    def test_wrong_region(self, flaky: FlakyServer, behaviour: str) -> None:
        error = error_of(fetcher(), f"s3://bucket/{behaviour}")
        assert (error.code, error.retryable) == ("wrong_region", False)

    def test_configuration_pickles_without_secrets_and_works_elsewhere(self, s3: S3Server) -> None:
        uri = s3.put("bucket", "elsewhere", b"from afar")
        used = Fetcher(policy=AccessPolicy((Uri("s3://bucket"),)))
        used.fetch(UriText(uri))
        pickled = pickle.dumps(used)
        assert s3.environment["AWS_SECRET_ACCESS_KEY"].encode() not in pickled
        script = (
            "import pickle, sys; from pipeline.storage.uris import UriText\n"
            "print(pickle.load(sys.stdin.buffer).fetch(UriText(sys.argv[1])).data)"
        )
        run = subprocess.run(
            [sys.executable, "-c", script, uri],
            input=pickled,
            capture_output=True,
            check=True,
            env={**os.environ, **s3.environment},
        )
        assert run.stdout == b"b'from afar'\n"

    def test_threads_share_one_client(self, flaky: FlakyServer, monkeypatch: pytest.MonkeyPatch) -> None:
        opened = []

        def count(*args: Any, **options: Any) -> Any:
            opened.append(args)
            time.sleep(0.05)
            return original(*args, **options)

        original = filesystems.S3Store
        monkeypatch.setattr(filesystems, "S3Store", count)
        filesystems._s3_store.cache_clear()
        with ThreadPoolExecutor(8) as pool:
            found = pool.map(fetcher().fetch, [UriText("s3://bucket/ok")] * 16)
            assert [each.data for each in found] == [BODY] * 16
        assert opened == [("bucket",)]


class TestLocal:
    def test_regular_files(self, tmp_path: Path) -> None:
        path = tmp_path / "a b?#.jpg"
        path.write_bytes(BODY)
        link = tmp_path / "link"
        link.symlink_to(path)
        (tmp_path / "empty").touch()
        assert in_order(
            Fetcher(),
            [UriText(str(path)), UriText(path.as_uri()), UriText(str(link)), UriText(str(tmp_path / "empty"))],
        ) == [
            BODY,
            BODY,
            BODY,
            b"",
        ]

    def test_everything_else(self, tmp_path: Path) -> None:
        fifo, listener = tmp_path / "fifo", tmp_path / "socket"
        os.mkfifo(fifo)
        (tmp_path / "loop").symlink_to(tmp_path / "loop")
        (tmp_path / "large").write_bytes(BODY)
        with socket.socket(socket.AF_UNIX) as unix:
            unix.bind(str(listener))
            expected = {
                str(tmp_path): "not_a_file",
                str(fifo): "not_a_file",
                str(listener): "not_a_file",
                "/dev/zero": "not_a_file",
                str(tmp_path / "none"): "not_found",
                str(tmp_path / "large" / "below"): "not_found",
                str(tmp_path / "loop"): "not_found",
                str(tmp_path / ("x" * 300)): "not_found",
                str(tmp_path / "large"): "too_large",
                f"{tmp_path}/a\0b": "bad_uri",
                "": "bad_uri",
            }
            results = in_order(fetcher(max_object_bytes=len(BODY) - 1), [UriText(uri) for uri in list(expected)])
        codes = [result.code if isinstance(result, FetchError) else result for result in results]
        assert codes == list(expected.values())

    def test_size_that_fstat_does_not_tell(self) -> None:
        assert fetcher().fetch(UriText("/proc/self/status")).data.startswith(b"Name:")
        assert error_of(fetcher(max_object_bytes=10), "/proc/self/status").code == "too_large"

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
    def test_permissions(self, tmp_path: Path) -> None:
        (tmp_path / "a").touch(mode=0)
        assert error_of(fetcher(), str(tmp_path / "a")).code == "access_denied"

    def test_policy(self, tmp_path: Path) -> None:
        (tmp_path / "in").mkdir()
        (tmp_path / "in" / "a").write_bytes(b"x")
        (tmp_path / "in" / "out").symlink_to("/etc/hostname")
        limited = Fetcher(policy=AccessPolicy((Uri(str(tmp_path / "in")),)))
        assert limited.fetch(UriText(str(tmp_path / "in" / "a"))).data == b"x"
        assert error_of(limited, str(tmp_path / "in" / "out")).code == "uri_not_allowed"
        assert error_of(limited, "s3://bucket/a").code == "uri_not_allowed"


class TestFsspec:
    def test_memory(self) -> None:
        import fsspec

        names = ("/dir/a", "/dir/x//b", "/dir/what?#1.jpg", "/dir/a::memory:b")
        for name in names:
            fsspec.filesystem("memory").pipe(name, name.encode())
        used = Fetcher(policy=AccessPolicy((Uri("memory://dir"),)))
        for name in names[:3]:
            assert used.fetch(UriText(f"memory:/{name}")).data == name.encode()
        assert error_of(used, "memory://dir/a::memory:b").code == "bad_uri"
        assert error_of(used, "memory://dir/b").code == "not_found"
        assert error_of(used, "memory://dir").code == "not_a_file"
        assert error_of(Fetcher(), "memory://dir/a").code == "uri_not_allowed"

    def test_asynchronous_file_system_is_cut_off(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import fsspec
        from fsspec.asyn import AsyncFileSystem

        class Silent(AsyncFileSystem):
            async def _info(self, path: str, **options: object) -> dict[str, object]:
                await asyncio.sleep(60)
                return {"name": path, "type": "file", "size": 1}

        fsspec.register_implementation("silent", Silent, clobber=True)
        started = time.monotonic()
        silent = fetcher(roots=(Uri("silent://host"),), max_attempts=1, attempt_timeout_s=0.4)
        assert error_of(silent, "silent://host/a").code == "timeout"
        assert time.monotonic() - started < 2

    def test_schemes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "gcsfs", None)
        error = error_of(fetcher(), "gs://bucket/a")
        assert error.code == "unsupported_scheme"
        assert "gcsfs" in error.detail
        assert error_of(fetcher(), "nope://bucket/a").code == "uri_not_allowed"
        named = fetcher(roots=(Uri("nope://bucket"),))
        assert error_of(named, "nope://bucket/a").code == "unsupported_scheme"


@pytest.mark.parametrize(
    "uri",
    [
        f"s3://KEY:{SECRET}@bucket/a",
        f"https://user:{SECRET}@host/a",
        f"zip://a::https://u:{SECRET}@host/a",
        "s3://bucket/a\ud800",
        "http://exa℀mple.com/a",
        "http://" + "x" * 300 + "/a",
        "http://host/a\nb",
        "/data/\udcff\0",
    ],
)
def test_bad_uris(uri: str) -> None:
    error = error_of(fetcher(), uri)
    assert (error.code, error.retryable) == ("bad_uri", False)


def test_unforeseen_errors_are_values_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(*_: Any) -> bytes:
        raise ZeroDivisionError(SECRET)

    monkeypatch.setattr(fetch_module, "_read_local", explode)
    assert error_of(fetcher(), "/a").code == "failed"


def test_backoff_is_full_jitter_under_a_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    bounds: list[float] = []

    def uniform(low: float, high: float) -> float:
        assert low == 0
        bounds.append(high)
        return high

    def unavailable(*_: Any) -> bytes:
        raise FetchError("unavailable", UriText("/a"), "")

    monkeypatch.setattr(random, "uniform", uniform)
    monkeypatch.setattr(fetch_module.time, "sleep", waits.append)
    monkeypatch.setattr(fetch_module, "_read_local", unavailable)
    settings = FetchSettings(max_attempts=6, attempt_timeout_s=1, deadline_s=99)
    with pytest.raises(FetchError):
        Fetcher(settings, backoff=Backoff(base_s=1, cap_s=5)).fetch(UriText("/a"))
    assert waits == [1, 2, 4, 5, 5]
    assert bounds[:5] == waits


class Held:
    """Bytes of `_read_local` that are in memory: being read, or not yet let go by whoever asked for them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, sizes: dict[str, int]) -> None:
        self.sizes, self.held, self.most, self.asked = sizes, 0, 0, Counter[str]()
        self.lock = threading.Lock()
        monkeypatch.setattr(fetch_module, "_read_local", self.read)

    def read(self, uri: Uri, settings: FetchSettings, allowance: Allowance, _member: TarMember | None) -> Fetched:
        size = self.sizes[uri.path]
        with self.lock:
            self.asked[uri.path] += 1
        allowance.claim(size)
        with self.lock:
            self.held += size
            self.most = max(self.most, self.held)
        time.sleep(0.002)
        return Fetched(bytes(size), ObjectVersion())


@given(
    sizes=st.lists(st.integers(0, 60), min_size=1, max_size=12), limit=st.integers(1, 100), threads=st.integers(1, 8)
)
@settings(deadline=None, max_examples=40)
def test_no_more_is_held_than_the_budget_or_one_object(sizes: list[int], limit: int, threads: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        held = Held(patch, {f"/{i}": size for i, size in enumerate(sizes)})
        some = Fetcher(FetchSettings(max_bytes_at_once=limit, max_object_bytes=50, fetch_concurrency=threads))
        found = {}
        for i, each in some.fetch_in_turn([UriText(path) for path in held.sizes]):
            assert i not in found
            found[i] = each.code if isinstance(each, FetchError) else len(each.data)
            held.held -= 0 if isinstance(each, FetchError) else len(each.data)
    assert found == {i: size if size <= 50 else "too_large" for i, size in enumerate(sizes)}
    assert held.most <= max(limit, *(size for size in [0, 0, *sizes] if size <= 50))
    assert max(held.asked.values()) <= 1 + len(sizes)


def test_what_found_no_room_is_asked_for_again_only_where_it_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held(monkeypatch, {f"/{i}": 40 for i in range(20)})
    some = Fetcher(FetchSettings(max_bytes_at_once=100, fetch_concurrency=4))
    assert len(list(some.fetch_in_turn([UriText(path) for path in held.sizes]))) == 20
    assert max(held.asked.values()) <= 2


@pytest.mark.parametrize("protocol", ["http", "s3", "file"])
def test_large_objects_come_in_turn(flaky: FlakyServer, tmp_path: Path, protocol: str) -> None:
    (tmp_path / "a").write_bytes(BODY)
    uris = [str(tmp_path / "a") if protocol == "file" else TestBothProtocols().uri(flaky, protocol, "ok")] * 5
    some = fetcher(*([] if protocol == "file" else [flaky]), max_bytes_at_once=2 * len(BODY))
    assert in_order(some, [UriText(uri) for uri in uris]) == [BODY] * 5


def test_an_object_of_unknown_length_has_room_alone() -> None:
    budget, uri = ByteBudget(100), UriText("https://host/a")
    first, second = (Allowance(uri, FetchSettings(), budget) for _ in range(2))
    first.claim(60)
    second.claim(40)
    with pytest.raises(NoRoom) as caught:
        second.claim(41)
    assert caught.value.size_bytes == 41
    second.give_back()
    first.claim(1000)
    first.give_back()
    second.claim(1000)
