from __future__ import annotations

import contextlib
import os
import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.storage.uris import AccessDenied, AccessPolicy, Location, UriError, join, redact, split_uri


@pytest.mark.parametrize(
    ("uri", "safe"),
    [
        ("s3://bucket/a/b.jpg", "s3://bucket/a/b.jpg"),
        ("s3://AKIA:secret@bucket/a.jpg?region=x&secret=y", "s3://bucket/a.jpg"),
        ("s3://AKIA:sec/ret@bucket/a.jpg", "s3://..."),
        ("s3://AKIA:se?cret@bucket/a.jpg", "s3://..."),
        ("https://user:pw@host:8443/a.jpg?X-Amz-Signature=abc#frag", "https://host:8443/a.jpg"),
        ("https://host?token=abc", "https://host"),
        ("https://host#token", "https://host"),
        ("https://u:p@ss@host/a", "https://host/a"),
        ("http://[::1]:8000/a?b", "http://[::1]:8000/a"),
        (
            "abfss://container@account.dfs.core.windows.net/a?sig=x",
            "abfss://container@account.dfs.core.windows.net/a",
        ),
        ("abfss://user:pw@account.dfs.core.windows.net/a", "abfss://account.dfs.core.windows.net/a"),
        ("simplecache::https://u:p@host/a?t=1", "https://..."),
        ("/data/what?#1.jpg", "/data/what?#1.jpg"),
        ("a@b?c#d.jpg", "a@b?c#d.jpg"),
        ("/data/x://u:p@y?z", "/data/x://u:p@y?z"),
        ("", ""),
    ],
)
def test_redact(uri: str, safe: str) -> None:
    assert redact(uri) == safe


@given(st.sampled_from(["s3", "https", "ftp", "abfs"]), st.text(), st.text(), st.text())
def test_redact_never_shows_password_or_query(scheme: str, user: str, password: str, query: str) -> None:
    secret = "S3CR3T"
    uri = f"{scheme}://{user}:{secret}{password}@host/key?{query}{secret}"
    shown = redact(uri)
    if "/" not in user and "?" not in user and "#" not in user:
        assert secret not in shown
    assert secret not in redact(f"{scheme}://host/key?{query}{secret}")


@given(st.text())
def test_any_text_is_split_or_refused(uri: str) -> None:
    redact(uri)
    with contextlib.suppress(UriError):
        assert isinstance(split_uri(uri), Location)
        AccessPolicy(("s3://bucket", "https://host/", "/data")).check(uri)


@pytest.mark.parametrize(
    ("uri", "location"),
    [
        ("/data/a?b#c.jpg", ("file", "", "/data/a?b#c.jpg")),
        ("a.jpg", ("file", "", "a.jpg")),
        ("file:///data/a%20b?.jpg", ("file", "", "/data/a b?.jpg")),
        ("file://localhost/data/a", ("file", "", "/data/a")),
        ("s3://bucket/a?b#c%20.jpg", ("s3", "bucket", "a?b#c%20.jpg")),
        ("S3A://bucket//a", ("s3", "bucket", "/a")),
        ("s3://bucket/a::b", ("s3", "bucket", "a::b")),
        ("s3://bucket", ("s3", "bucket", "")),
        ("https://HOST:443/a/b?c=d", ("https", "host", "/a/b")),
        ("http://host:8080", ("http", "host:8080", "")),
        ("gs://bucket/a", ("gs", "bucket", "/a")),
        ("abfss://box@account/a", ("abfss", "box@account", "/a")),
    ],
)
def test_split(uri: str, location: tuple[str, str, str]) -> None:
    assert split_uri(uri) == location


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "s3://",
        "s3:///key",
        "s3://KEY:SECRET@bucket/a",
        "s3://KEY@bucket/a",
        "s3://KEY:SEC/RET@bucket/a",
        "https://user@host/a",
        "https:///a",
        "https://host:99999/a",
        "https://[::1/a",
        "ftp://user:SECRET@host/a",
        "file://server/share/a",
        "zip://a.jpg::s3://bucket/b.zip",
        "simplecache::s3://bucket/a",
        "1x://host/a",
        "/data/a\0b",
        "https://host/a\r\nX: y",
    ],
)
def test_split_refuses(uri: str) -> None:
    with pytest.raises(UriError) as caught:
        split_uri(uri)
    assert caught.value.code == "bad_uri"
    assert "SECRET" not in str(caught.value)
    assert "RET@" not in str(caught.value)


@pytest.mark.parametrize(
    ("root", "uri", "joined"),
    [
        ("/data", "a/b.jpg", "/data/a/b.jpg"),
        ("/data/", "a/../b.jpg", "/data/b.jpg"),
        ("/data", "./a.jpg", "/data/a.jpg"),
        ("/data", "..a/b", "/data/..a/b"),
        ("/data", "/other/a.jpg", "/other/a.jpg"),
        ("/data", "s3://bucket/a", "s3://bucket/a"),
        ("file:///data%20set", "50%25.jpg", "/data set/50%25.jpg"),
        ("s3://bucket", "a?b#.jpg", "s3://bucket/a?b#.jpg"),
        ("s3://bucket/prefix/", "a/b.jpg", "s3://bucket/prefix/a/b.jpg"),
        ("https://host/x", "a.jpg", "https://host/x/a.jpg"),
        ("", "/a.jpg", "/a.jpg"),
    ],
)
def test_join(root: str, uri: str, joined: str) -> None:
    assert join(root, uri) == joined


@pytest.mark.parametrize(
    ("root", "uri", "error"),
    [
        ("/data", "../a", AccessDenied),
        ("/data", "a/../../b", AccessDenied),
        ("/data", "..", AccessDenied),
        ("s3://bucket/prefix", "../other/a", AccessDenied),
        ("", "a.jpg", UriError),
        ("/data", "", UriError),
        ("https://host/x?sig=1", "a.jpg", UriError),
    ],
)
def test_join_refuses(root: str, uri: str, error: type[UriError]) -> None:
    with pytest.raises(error):
        join(root, uri)


ROOTS = AccessPolicy(("s3://bucket/prefix", "s3://whole", "https://host/pub/", "http://10.0.0.5:9000/", "gs://b"))


@pytest.mark.parametrize(
    "uri",
    [
        "s3://bucket/prefix/a.jpg",
        "s3a://bucket/prefix/a.jpg",
        "s3://whole/anything/at/all",
        "s3://bucket/prefix/a..b/..c",
        "https://host/pub/a.jpg?X-Amz-Signature=1",
        "https://host:443/pub/a.jpg",
        "https://HOST/pub/a%20b.jpg",
        "http://10.0.0.5:9000/a.jpg",
        "gs://b/a",
    ],
)
def test_inside_the_roots(uri: str) -> None:
    ROOTS.check(uri)


@pytest.mark.parametrize(
    "uri",
    [
        "s3://bucket/prefix-evil/a.jpg",
        "s3://bucket/other/a.jpg",
        "s3://bucket-evil/prefix/a.jpg",
        "s3://whole-evil/a",
        "s3://bucket/prefix/../secret",
        "s3://bucket/prefix/./a",
        "https://host/pub/../secret",
        "https://host/pub/%2e%2e/secret",
        "https://host/pub/..%2fsecret",
        "https://host/pub/..%5csecret",
        "https://host/public/a",
        "https://host.evil/pub/a",
        "https://host:444/pub/a",
        "http://host/pub/a",
        "http://10.0.0.5/a.jpg",
        "gs://c/a",
        "/etc/passwd",
        "file:///etc/passwd",
        "local:///etc/passwd",
        "data/a.jpg",
    ],
)
def test_outside_the_roots(uri: str) -> None:
    with pytest.raises(AccessDenied) as caught:
        ROOTS.check(uri)
    assert caught.value.code == "uri_not_allowed"
    assert pickle.loads(pickle.dumps(caught.value)).code == "uri_not_allowed"  # noqa: S301


def test_no_roots_and_nothing_allowed() -> None:
    AccessPolicy().check("s3://any/where")
    AccessPolicy().check("/etc/hostname")
    with pytest.raises(AccessDenied):
        AccessPolicy(()).check("s3://any/where")


class TestLocalRoots:
    def test_links_are_resolved(self, tmp_path: Path) -> None:
        inside, outside = tmp_path / "data", tmp_path / "data-evil"
        inside.mkdir()
        outside.mkdir()
        (outside / "secret").touch()
        (inside / "a.jpg").touch()
        (inside / "link").symlink_to(outside / "secret")
        (tmp_path / "alias").symlink_to(inside)
        for root in (str(inside), f"{inside}/", inside.as_uri(), str(tmp_path / "alias")):
            policy = AccessPolicy((root,))
            policy.check(str(inside / "a.jpg"))
            policy.check(str(tmp_path / "alias" / "a.jpg"))
            policy.check(f"{outside}/../data/a.jpg")
            for bad in (inside / "link", outside / "secret", f"{inside}/../data-evil/secret", tmp_path):
                with pytest.raises(AccessDenied):
                    policy.check(str(bad))

    def test_root_of_the_file_system(self) -> None:
        AccessPolicy(("/",)).check(os.path.realpath(__file__))


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f.0.0.1",
        "0177.0.0.1",
        "localhost",
        "localhost.",
        "LOCALHOST:8000",
        "a.localhost",
        "0.0.0.0",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1:80",
        "100.100.100.200",
        "169.254.169.254",
        "168.63.129.16",
        "224.0.0.1",
        "[::1]",
        "[::]",
        "[fe80::1]",
        "[fd00:ec2::254]",
        "[::ffff:169.254.169.254]",
        "[64:ff9b::a9fe:a9fe]",
        "[2002:7f00:1::]",
    ],
)
def test_internal_hosts_need_a_root_that_names_them(host: str) -> None:
    uri = f"http://{host}/a.jpg"
    with pytest.raises(AccessDenied):
        AccessPolicy().check(uri)
    AccessPolicy((f"http://{host}/",)).check(uri)


@pytest.mark.parametrize("host", ["8.8.8.8", "example.com", "[2606:4700::1111]", "172.32.0.1"])
def test_public_hosts_pass(host: str) -> None:
    AccessPolicy().check(f"https://{host}/a.jpg")


def test_resolved_address_is_judged_too() -> None:
    uri = "https://looks-public.example/a.jpg"
    AccessPolicy().check_address(uri, "8.8.8.8")
    AccessPolicy(("https://looks-public.example/",)).check_address(uri, "10.0.0.1")
    for address in ("10.0.0.1", "169.254.169.254", "::1", "fe80::1%eth0"):
        with pytest.raises(AccessDenied):
            AccessPolicy().check_address(uri, address)
        with pytest.raises(AccessDenied):
            AccessPolicy(("https://other.example/",)).check_address(uri, address)
