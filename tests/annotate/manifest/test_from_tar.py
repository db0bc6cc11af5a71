from __future__ import annotations

import gzip
import io
import os
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import webdataset

from pipeline.annotate.config import ManifestConfig
from pipeline.annotate.manifest.from_tar import ShardFile, expand_braces
from pipeline.annotate.manifest.open import open_manifest
from pipeline.annotate.manifest.rules import ManifestError
from pipeline.annotate.pending.antijoin import find_pending
from pipeline.storage.access import AccessPolicy
from pipeline.storage.fetch.fetcher import Fetcher
from pipeline.storage.fetch.rules import FetchError
from pipeline.storage.filesystems import open_aws_client
from pipeline.storage.uris import TarMember, Uri, UriText, redact
from testing.s3_server import S3Server
from tests.annotate.manifest.manifest_cases import read_all, write

_RNG = np.random.default_rng(5)


def tar(members: dict[str, bytes] | list[tuple[str, bytes]], format: int = tarfile.GNU_FORMAT) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=format) as file:
        for name, content in members.items() if isinstance(members, dict) else members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            file.addfile(entry, io.BytesIO(content))
    return sink.getvalue()


def pictures(count: int, size: int = 300) -> dict[str, bytes]:
    return {f"{i:06d}.jpg": _RNG.bytes(size + i % 7) for i in range(count)}


def rows_of(uri: str, scratch: Uri, **fields: Any) -> dict[str, dict[str, Any]]:
    return {row["image_id"]: row for row in read_all(open_manifest(ManifestConfig(uri=uri, **fields), scratch))}


def content_of(row: dict[str, Any]) -> bytes:
    return row["image_bytes"] if row["image_bytes"] is not None else Fetcher().fetch(UriText(row["image_uri"])).data


def by_webdataset(*paths: str) -> dict[str, bytes]:
    """The oracle: what the library itself reads."""
    found = {}
    for sample in webdataset.WebDataset(list(paths), shardshuffle=False, empty_check=False):
        for suffix in (key for key in sample if key.endswith(("jpg", "png"))):
            found[f"{os.path.basename(sample['__url__'])}/{sample['__key__']}.{suffix}"] = sample[suffix]
    return found


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_bytes_are_those_that_webdataset_yields(tmp_path: Path, scratch: Uri, format: int) -> None:
    long = "deep/" + "n" * 150
    members = {f"{long}.jpg": b"long name", "a.left.jpg": b"1", "a.right.png": b"22", "a.json": b"{}", "b.jpg": b"3"}
    shards = [write(tmp_path / "s" / f"shard-{i}.tar", tar(members, format)) for i in range(2)]
    rows = rows_of(str(tmp_path / "s" / "shard-{0..1}.tar"), scratch)
    assert {key: content_of(row) for key, row in rows.items()} == by_webdataset(*shards)
    assert len(rows) == 8
    assert rows == rows_of(str(tmp_path / "s"), scratch, format="webdataset")
    assert rows == rows_of(str(tmp_path / "s"), scratch)


def test_a_thousand_members_on_s3_cost_few_requests(s3: S3Server, scratch: Uri, tmp_path: Path) -> None:
    members = pictures(1000)
    content = tar(members)
    s3.put("bucket", "t/shard-0.tar", content)
    with s3.recorded() as requests:
        rows = rows_of("s3://bucket/t/shard-0.tar", scratch)
    indexing = len(requests)
    with s3.recorded() as requests:
        some = list(rows.items())[::50]
        assert all(content_of(row) == members[key.removeprefix("shard-0.tar/")] for key, row in some)
    reading = len(requests)
    print(f"index of {len(content):,} bytes, 1,000 members: {indexing} requests; {len(some)} pictures: {reading}")
    assert len(rows) == 1000
    assert indexing <= 8
    assert reading == len(some)
    open_aws_client("bucket", 10.0, 1).put_object(Bucket="bucket", Key="t/shard-0.tar", Body=tar(pictures(1000)))
    with pytest.raises(FetchError, match="shard_changed"):
        content_of(some[0][1])


def test_bodies_of_large_members_are_not_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", tar({f"{i}.jpg": bytes(4 << 20) for i in range(8)}))
    file = ShardFile(Uri(path))
    with tarfile.open(fileobj=file, mode="r:") as opened:
        assert len(opened.getmembers()) == 8
    assert file.num_requests <= 10
    assert file.num_bytes < 1 << 18


def test_of_a_truncated_shard_each_lost_member_fails_alone(tmp_path: Path, scratch: Uri) -> None:
    members = pictures(10, 2000)
    whole = tar(members)
    path = write(tmp_path / "a#1+2@x%23.tar", whole[: 5 * 2560 + 512 + 100])
    rows = rows_of(path, scratch)
    assert len(rows) == 6
    found = [Fetcher().fetch_in_turn([UriText(row["image_uri"]) for row in rows.values()])]
    codes = [getattr(answer, "code", "") for _, answer in sorted(found[0], key=lambda item: item[0])]
    assert codes == [""] * 5 + ["truncated"]


def test_a_truncated_shard_on_s3(s3: S3Server, scratch: Uri) -> None:
    whole = tar(pictures(2, 2000))
    for name, kept in (("within", 2560 + 512 + 100), ("before", 2560 + 512)):
        s3.put("bucket", f"cut/{name}.tar", whole[:kept])
        *_, last = rows_of(f"s3://bucket/cut/{name}.tar", scratch).values()
        with pytest.raises(FetchError, match="truncated"):
            content_of(last)


def test_gzip_is_copied(tmp_path: Path, scratch: Uri) -> None:
    members = pictures(20)
    write(tmp_path / "d" / "a.tar.gz", gzip.compress(tar(members)))
    write(tmp_path / "d" / "b.tar", tar(members))
    rows = rows_of(str(tmp_path / "d"), scratch)
    assert {key: content_of(row) for key, row in rows.items()} == {
        f"{shard}/{name}": content for shard in ("a.tar.gz", "b.tar") for name, content in members.items()
    }


def test_members_of_one_name_are_refused_by_what_refuses_ids(tmp_path: Path, scratch: Uri) -> None:
    path = write(tmp_path / "a.tar", tar([("x.jpg", b"1"), ("y.jpg", b"2"), ("x.jpg", b"3")]))
    with pytest.raises(ManifestError, match=r"'a\.tar/x\.jpg' 2 times \(first in .*a\.tar, picture 1\)"):
        find_pending(open_manifest(ManifestConfig(uri=path), scratch), [])


class _Shards(BaseHTTPRequestHandler):
    """A web server; what is below /plain knows no ranges."""

    content = b""

    def do_HEAD(self) -> None:
        self._answer(200, self.content, is_head=True)

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        if wanted is None or self.path.startswith("/plain"):
            self._answer(200, self.content)
            return
        first, last = map(int, wanted.removeprefix("bytes=").split("-"))
        part = self.content[first : last + 1]
        told = {"Content-Range": f"bytes {first}-{first + len(part) - 1}/{len(self.content)}"}
        self._answer(206 if part else 416, part, **(told if part else {}))

    def _answer(self, status: int, body: bytes, is_head: bool = False, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "ETag": '"one"', **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if not is_head:
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def web() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Shards) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("path", ["/a.tar", "/plain/a.tar"])
def test_http(web: str, scratch: Uri, path: str) -> None:
    members = pictures(3, 900)
    _Shards.content = tar(members)
    fetcher = Fetcher(policy=AccessPolicy(roots=(Uri(web),)))
    rows = rows_of(web + path, scratch)
    found = {key: fetcher.fetch(UriText(row["image_uri"])) for key, row in rows.items()}
    assert {key: fetched.data for key, fetched in found.items()} == {f"a.tar/{k}": v for k, v in members.items()}
    assert {fetched.version.etag for fetched in found.values()} == {"one"}
    codes = {}
    for code, member in {
        "truncated": TarMember(web + path, 1 << 20, 10, "one"),
        "shard_changed": TarMember(web + path, 512, 10, "two"),
    }.items():
        with pytest.raises(FetchError) as caught:
            fetcher.fetch(UriText(member.text))
        codes[code] = caught.value.code
    assert codes == {"truncated": "truncated", "shard_changed": "shard_changed"}
    with pytest.raises(FetchError, match="uri_not_allowed"):
        Fetcher().fetch(UriText(TarMember(web + path, 512, 10).text))


def test_any_file_system(scratch: Uri) -> None:
    members = pictures(3)
    fsspec.filesystem("memory").pipe("/tars/a.tar", tar(members)[:1900])
    fetcher = Fetcher(policy=AccessPolicy(roots=(Uri("memory://tars"),)))
    first, last = rows_of("memory://tars/a.tar", scratch).values()
    assert fetcher.fetch(UriText(first["image_uri"])).data == members["000000.jpg"]
    with pytest.raises(FetchError, match="uri_not_allowed"):
        content_of(last)


def test_links_and_empty_members(tmp_path: Path, scratch: Uri, caplog: pytest.LogCaptureFixture) -> None:
    sink = io.BytesIO(tar({"a.jpg": b""}))
    with tarfile.open(fileobj=sink, mode="a") as file:
        link = tarfile.TarInfo("b.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        file.addfile(link)
    rows = rows_of(write(tmp_path / "a.tar", sink.getvalue()), scratch)
    assert [content_of(row) for row in rows.values()] == [b""]
    assert "1 links, sparse or special files are left out" in caplog.text


def test_nothing_to_do(tmp_path: Path, scratch: Uri) -> None:
    with pytest.raises(ManifestError, match=r"has no image; 1 files are left out.*json"):
        rows_of(write(tmp_path / "a.tar", tar({"a.json": b"{}"})), scratch)
    with pytest.raises(ManifestError, match=r"b-1\.tar does not exist"):
        rows_of(str(tmp_path / "b-{1..2}.tar"), scratch)


def test_braces() -> None:
    assert expand_braces("s-{08..10}.tar") == ["s-08.tar", "s-09.tar", "s-10.tar"]
    assert expand_braces("{a,b}/{0..1}.tar") == ["a/0.tar", "a/1.tar", "b/0.tar", "b/1.tar"]
    assert expand_braces("{x}.tar") == ["{x}.tar"]


@pytest.mark.parametrize("shard", ["s3://bucket/a#1+2@x.tar", "file:///d/a%23.tar", "https://host/a.tar"])
def test_the_uri_of_a_member_is_written_whole(shard: str) -> None:
    member = TarMember(shard, 512, 100, 'W/"a#b"')
    assert TarMember.of(member.text) == member
    assert redact(member.text) == member.text
    assert TarMember.of(shard + "#512+100@x") is None
    assert "secret" not in redact(TarMember("https://h/a.tar?sig=secret", 1, 2, "").text)


def test_a_folder_of_pictures_with_a_tar_stays_one(tmp_path: Path, scratch: Uri) -> None:
    write(tmp_path / "d" / "a.tar", tar({"x.jpg": b"1"}))
    write(tmp_path / "d" / "b.jpg", b"2")
    assert list(rows_of(str(tmp_path / "d"), scratch)) == ["b.jpg"]


def test_hidden_members_are_passed_over_as_in_a_folder(tmp_path: Path, scratch: Uri) -> None:
    path = write(tmp_path / "a.tar", tar({"./b.jpg": b"1", "._b.jpg": b"2", ".c/d.jpg": b"3"}))
    assert list(rows_of(path, scratch)) == ["a.tar/b.jpg"]


def test_a_shard_that_is_damaged_before_its_end_is_refused(tmp_path: Path, scratch: Uri) -> None:
    whole = tar(pictures(9, 700))
    packed = gzip.compress(tar(pictures(200, 5000)))
    contents = {
        "a.tar": whole[:3072] + b"y" + whole[3073:],
        "b.tar": b"x" * 5000,
        "c.tar": gzip.compress(whole),
        "d.tgz": packed[: len(packed) // 2],
        "e.tgz": gzip.compress(whole[:5000]),
    }
    for name, content in contents.items():
        with pytest.raises(ManifestError, match=rf"{name} (is damaged|is no tar|is cut off|cannot be read)"):
            rows_of(write(tmp_path / name, content), scratch)
