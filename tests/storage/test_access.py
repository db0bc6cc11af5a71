from __future__ import annotations

import os
import pickle
import time
from pathlib import Path

import fsspec
import pytest

from pipeline.storage.access import AccessPolicy
from pipeline.storage.uris import AccessDenied, Uri


def policy_of(*roots: str) -> AccessPolicy:
    return AccessPolicy(tuple(map(Uri, roots)))


ROOTS = policy_of("s3://bucket/prefix", "s3://whole", "https://host/pub/", "http://10.0.0.5:9000/", "gs://b")


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
    ROOTS.check(Uri(uri))


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
        "https://host/pub/..;/secret",
        "https://host/pub/..;a=b/secret",
        "https://host/pub/%2e%2e%3b/secret",
        "https://host/pub/%252e%252e/secret",
        "https://host/pub\\..\\secret",
        "https://host/pub;x/secret",
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
        ROOTS.check(Uri(uri))
    assert caught.value.code == "uri_not_allowed"
    assert pickle.loads(pickle.dumps(caught.value)).code == "uri_not_allowed"  # noqa: S301


SCHEMES_WITH_A_HOST = sorted(
    {name for name in fsspec.available_protocols() if "_" not in name}
    - {"file", "local", "s3", "s3a", "http", "https", "gs", "gcs", "az", "abfs"}
)


@pytest.mark.parametrize("scheme", SCHEMES_WITH_A_HOST)
def test_without_roots_no_other_scheme_is_read(scheme: str) -> None:
    uri = Uri(f"{scheme}://somewhere/a.jpg")
    with pytest.raises(AccessDenied, match="allowed_roots"):
        AccessPolicy().check(uri)
    policy_of(f"{scheme}://somewhere/").check(uri)


@pytest.mark.parametrize("uri", ["gs://b/a", "gcs://b/a", "az://c/a", "abfss://c@account.dfs.core.windows.net/a"])
def test_without_roots_object_stores_are_read(uri: str) -> None:
    AccessPolicy().check(Uri(uri))


@pytest.mark.parametrize("key", ["./a.jpg", "x/../a.jpg", "..", "a//b.jpg", "http://127.0.0.1/x"])
def test_without_roots_keys_are_opaque(key: str) -> None:
    AccessPolicy().check(Uri(f"s3://bucket/p/{key}"))


def test_no_roots_and_nothing_allowed() -> None:
    AccessPolicy().check(Uri("s3://any/where"))
    AccessPolicy().check(Uri("/etc/hostname"))
    with pytest.raises(AccessDenied):
        AccessPolicy(()).check(Uri("s3://any/where"))


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
            policy = policy_of(root)
            policy.check(Uri(str(inside / "a.jpg")))
            policy.check(Uri(str(tmp_path / "alias" / "a.jpg")))
            policy.check(Uri(f"{outside}/../data/a.jpg"))
            for bad in (inside / "link", outside / "secret", f"{inside}/../data-evil/secret", tmp_path):
                with pytest.raises(AccessDenied):
                    policy.check(Uri(str(bad)))

    def test_root_of_the_file_system(self) -> None:
        policy_of("/").check(Uri(os.path.realpath(__file__)))


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
        # One of each line of IANA's registries of special-purpose addresses, of 2026.
        "0.1.2.3",
        "100.64.0.1",
        "192.0.0.1",
        "192.0.0.8",
        "192.0.0.9",
        "192.0.0.170",
        "192.0.0.192",
        "192.0.2.1",
        "192.31.196.1",
        "192.52.193.1",
        "192.88.99.2",
        "192.175.48.1",
        "198.18.0.1",
        "198.51.100.1",
        "203.0.113.1",
        "240.0.0.1",
        "255.255.255.255",
        "[64:ff9b:1::1]",
        "[100::1]",
        "[100:0:0:1::1]",
        "[2001::1]",
        "[2001:1::1]",
        "[2001:2::1]",
        "[2001:20::1]",
        "[2001:db8::1]",
        "[2620:4f:8000::1]",
        "[3fff::1]",
        "[5f00::1]",
        "[fc00::1]",
        "[::127.0.0.1]",
        "[fec0::1]",
        "[ff02::1]",
        "[64:ff9b::c000:c0]",
    ],
)
def test_internal_hosts_need_a_root_that_names_them(host: str) -> None:
    uri = f"http://{host}/a.jpg"
    with pytest.raises(AccessDenied):
        AccessPolicy().check(Uri(uri))
    policy_of(f"http://{host}/").check(Uri(uri))


@pytest.mark.parametrize(
    "host", ["8.8.8.8", "example.com", "[2606:4700::1111]", "172.32.0.1", "192.0.1.1", "[64:ff9b::808:808]"]
)
def test_public_hosts_pass(host: str) -> None:
    AccessPolicy().check(Uri(f"https://{host}/a.jpg"))


def test_resolved_address_is_judged_too() -> None:
    uri = "https://looks-public.example/a.jpg"
    AccessPolicy().check_address(Uri(uri), "8.8.8.8")
    policy_of("https://looks-public.example/").check_address(Uri(uri), "10.0.0.1")
    for address in ("10.0.0.1", "169.254.169.254", "::1", "fe80::1%eth0"):
        with pytest.raises(AccessDenied):
            AccessPolicy().check_address(Uri(uri), address)
        with pytest.raises(AccessDenied):
            policy_of("https://other.example/").check_address(Uri(uri), address)


def test_a_path_that_is_encoded_over_and_over_takes_no_time() -> None:
    started = time.process_time()
    with pytest.raises(AccessDenied, match="have no place"):
        AccessPolicy().check(Uri("https://host/%" + "25" * 500_000))
    assert time.process_time() - started < 2  # decoding until nothing changes: hours
