from __future__ import annotations

import gzip
import io
import os
import re
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.annotate.config import ManifestConfig
from pipeline.annotate.manifest import from_tar
from pipeline.annotate.manifest.from_tar import ShardFile
from pipeline.annotate.manifest.open import open_manifest
from pipeline.annotate.manifest.rules import ManifestError
from pipeline.annotate.manifest.shards import Shard, expand_braces
from pipeline.annotate.pending.antijoin import find_pending
from pipeline.storage.access import AccessPolicy
from pipeline.storage.fetch.fetcher import Fetcher
from pipeline.storage.fetch.rules import FetchError, FetchSettings
from pipeline.storage.filesystems import open_aws_client
from pipeline.storage.uris import TarMember, Uri, UriText, redact
from testing.s3_server import S3Server
from tests.annotate.manifest.manifest_cases import idx, read_all, tar, write

_RNG = np.random.default_rng(5)


def pictures(count: int, size: int = 300) -> dict[str, bytes]:
    return {f"{i:06d}.jpg": _RNG.bytes(size + i % 7) for i in range(count)}


def rows_of(uri: str, scratch: Uri, fetcher: Fetcher | None = None, **fields: Any) -> dict[str, dict[str, Any]]:
    manifest = open_manifest(ManifestConfig(uri=uri, **fields), scratch, fetcher)
    return {row["image_id"]: row for row in read_all(manifest)}


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
    file = ShardFile(Shard("a.tar", Uri(path)), Fetcher(), threading.Event())
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


def test_a_compressed_shard_that_was_never_closed(
    tmp_path: Path, scratch: Uri, caplog: pytest.LogCaptureFixture
) -> None:
    members = pictures(3)
    rows = rows_of(write(tmp_path / "a.tgz", gzip.compress(tar(members)[: 3 * 1024])), scratch)
    assert {key: content_of(row) for key, row in rows.items()} == {f"a.tgz/{k}": v for k, v in members.items()}
    assert "a.tgz is cut off at byte 3072" in caplog.text


def test_members_of_one_name_are_refused_by_what_refuses_ids(tmp_path: Path, scratch: Uri) -> None:
    path = write(tmp_path / "a.tar", tar([("x.jpg", b"1"), ("y.jpg", b"2"), ("x.jpg", b"3")]))
    with pytest.raises(ManifestError, match=r"'a\.tar/x\.jpg' 2 times \(first in .*a\.tar, picture 1\)"):
        find_pending(open_manifest(ManifestConfig(uri=path), scratch), [])


class _Shards(BaseHTTPRequestHandler):
    """A web server; what is below /plain knows no ranges."""

    content = b""
    sent_bytes = 0

    def do_HEAD(self) -> None:
        self._answer(200, self.content, is_head=True)

    def do_GET(self) -> None:
        if self.path.endswith(".idx"):
            self.send_error(404)
            return
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
        try:
            for start in range(0, 0 if is_head else len(body), 1 << 16):
                self.wfile.write(body[start : start + (1 << 16)])
                _Shards.sent_bytes += len(body[start : start + (1 << 16)])
        except OSError:
            self.close_connection = True

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


def test_http(web: str, scratch: Uri) -> None:
    members = pictures(3, 900)
    _Shards.content, path = tar(members), "/a.tar"
    fetcher = Fetcher(policy=AccessPolicy(roots=(Uri(web),)))
    rows = rows_of(web + path, scratch, fetcher)
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
    with pytest.raises(ManifestError, match=r"cannot be indexed: uri_not_allowed: .*images\.allowed_roots"):
        rows_of(web + path, scratch)


def test_a_server_that_knows_no_ranges_is_refused_and_nothing_read(web: str, scratch: Uri) -> None:
    _Shards.content, _Shards.sent_bytes = tar(pictures(100, 200_000)), 0
    fetcher = Fetcher(policy=AccessPolicy(roots=(Uri(web),)))
    with pytest.raises(ManifestError, match=r"a\.tar cannot be indexed: no_ranges: .*copy the shard"):
        rows_of(f"{web}/plain/a.tar", scratch, fetcher)
    with pytest.raises(FetchError, match=r"no_ranges: .*copy the shard"):
        fetcher.fetch(UriText(TarMember(f"{web}/plain/a.tar", 20_000_000, 10).text))
    assert _Shards.sent_bytes < len(_Shards.content) / 2


def test_any_file_system(scratch: Uri) -> None:
    members = pictures(3)
    fsspec.filesystem("memory").pipe("/tars/a.tar", tar(members)[:1900])
    fetcher = Fetcher(policy=AccessPolicy(roots=(Uri("memory://tars"),)))
    first, last = rows_of("memory://tars/a.tar", scratch, fetcher).values()
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
    assert "1 link, sparse or special file is left out" in caplog.text


def test_nothing_to_do(tmp_path: Path, scratch: Uri) -> None:
    with pytest.raises(ManifestError, match=r"has no image; 1 file is left out.*json"):
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


def test_of_a_compressed_shard_no_member_is_read_that_is_too_large(tmp_path: Path, scratch: Uri) -> None:
    members = {"a.jpg": b"1" * 1000, "b.jpg": bytes(5000), "c.jpg": b"3" * 999, "d.json": bytes(9000)}
    fetcher = Fetcher(FetchSettings(max_object_bytes=1000))
    path = write(tmp_path / "a.tgz", gzip.compress(tar(members)))
    rows = rows_of(path, scratch, fetcher)
    contents = {key: row["image_bytes"] for key, row in rows.items()}
    assert contents == {"a.tgz/a.jpg": members["a.jpg"], "a.tgz/b.jpg": None, "a.tgz/c.jpg": members["c.jpg"]}
    with pytest.raises(FetchError, match=r"too_large: .*a\.tgz#.*5000 bytes"):
        fetcher.fetch(UriText(rows["a.tgz/b.jpg"]["image_uri"]))


def header(name: str, kind: bytes, size: int, content: bytes = b"") -> bytes:
    """A member as bytes, whatever size it says."""
    entry = tarfile.TarInfo(name)
    entry.type, entry.size = kind, size
    return entry.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512)


_LONG = b"n" * (1 << 20)
HEADERS = {
    "long name": header("././@LongLink", tarfile.GNUTYPE_LONGNAME, len(_LONG), _LONG),
    "extended header": header("x", tarfile.XHDTYPE, len(_LONG), b"%d path=" % len(_LONG) + _LONG[:-13]),
    "digits": header("x", tarfile.XHDTYPE, len(_LONG), b"1" * len(_LONG)),
    "headers of headers": header("x", tarfile.XHDTYPE, 9, b"9 a=bcde\n") * 5000,
    "sparse": header("x", tarfile.GNUTYPE_SPARSE, 0)[:482] + b"\1" + bytes(29) + (bytes(504) + b"\1" + bytes(7)) * 5000,
    "negative": header("x", tarfile.GNUTYPE_LONGNAME, -1024),
    "backwards": header("a.jpg", tarfile.REGTYPE, -1024),
    "beyond all": header("a.jpg", tarfile.REGTYPE, 1 << 70),
}


@pytest.mark.parametrize("kind", HEADERS)
@pytest.mark.parametrize("suffix", ["tar", "tgz"])
def test_headers_cost_little(tmp_path: Path, scratch: Uri, kind: str, suffix: str) -> None:
    content = tar({"first.jpg": b"1"})[:1024] + HEADERS[kind] + tar({"last.jpg": b"2"})
    path = write(tmp_path / f"a.{suffix}", gzip.compress(content) if suffix == "tgz" else content)
    with pytest.raises(ManifestError, match=rf"a\.{suffix} is damaged at byte"):
        rows_of(path, scratch)


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_shard_may_end_anywhere(tmp_path: Path, scratch: Uri, format: int, caplog: pytest.LogCaptureFixture) -> None:
    members = {"a.jpg": b"a" * 700, f"{'n' * 150}.jpg": b"n" * 100, "c.jpg": b"c" * 600}
    whole = tar(members, format)
    with tarfile.open(fileobj=io.BytesIO(whole)) as file:
        starts = {entry.name: entry.offset_data for entry in file}
    path = tmp_path / "a.tar"
    for end in range(512, max(starts.values()) + 1024, 100):
        rows = rows_of(write(path, whole[:end]), scratch)
        assert list(rows) == [f"a.tar/{name}" for name, start in starts.items() if start <= end], end
        assert f"a.tar is cut off at byte {end}" in caplog.text
        for name, row in zip(starts, rows.values(), strict=False):
            if starts[name] + len(members[name]) <= end:
                assert content_of(row) == members[name]
            else:
                with pytest.raises(FetchError, match="truncated"):
                    content_of(row)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6 * 512 - 1), st.integers(0, 255)), min_size=1, max_size=4), st.booleans())
def test_whatever_is_wrong_with_a_header_is_said(changes: list[tuple[int, int]], packed: bool) -> None:
    content = bytearray(tar({f"{'n' * 120}.jpg": b"1" * 50, "b.jpg": b"2"}, tarfile.PAX_FORMAT))
    for at, value in changes:
        content[at] = value
        block = at // 512 * 512
        total = 256 + sum(content[block : block + 148]) + sum(content[block + 156 : block + 512])
        content[block + 148 : block + 156] = b"%06o\0 " % total  # or each change would be found by this sum
    with tempfile.TemporaryDirectory() as folder, suppress(ManifestError):
        path = write(Path(folder) / f"a.{'tgz' if packed else 'tar'}", gzip.compress(content) if packed else content)
        for row in rows_of(path, Uri(f"{folder}/scratch")).values():
            with suppress(FetchError):
                content_of(row)


def test_shards_are_indexed_side_by_side_and_keep_their_order(
    s3: S3Server, scratch: Uri, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each waits until three others are at work, as long as so many are left; the first ones answer last."""
    shards = {f"side/{i:02d}.tar": tar({f"{i}-{j}.jpg": b"%d" % i for j in range(3)}) for i in range(12)}
    for key, content in shards.items():
        s3.put("bucket", key, content)
    together, fetch = threading.Barrier(4), Fetcher.fetch

    def slow(self: Fetcher, uri: UriText, budget: Any = None) -> Any:
        found = fetch(self, uri, budget)
        together.wait(20)
        time.sleep(0.02 * (11 - int(uri.secret_text.partition(".tar")[0][-2:])))
        return found

    monkeypatch.setattr(Fetcher, "fetch", slow)
    # Of each shard two members are read in its thread, the third when its turn has come.
    monkeypatch.setattr(from_tar, "_MEMBERS_AT_ONCE", 2)
    monkeypatch.setattr(from_tar, "_TABLES_AHEAD", 1)
    found = list(rows_of("s3://bucket/side", scratch))
    assert found == [f"{i:02d}.tar/{i}-{j}.jpg" for i in range(12) for j in range(3)]


def test_one_that_is_damaged_waits_for_no_other(tmp_path: Path, scratch: Uri, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "0.tar", b"x" * 5000)
    for i in range(1, 5):
        write(tmp_path / f"{i}.tar", tar({f"{j}.jpg": bytes(2 << 20) for j in range(20)}))
    fetch, reads = Fetcher.fetch, []

    def slow(self: Fetcher, uri: UriText, budget: Any = None) -> Any:
        reads.append(uri)
        time.sleep(0.2)
        return fetch(self, uri, budget)

    monkeypatch.setattr(Fetcher, "fetch", slow)
    with pytest.raises(ManifestError, match=r"0\.tar is no tar"):
        rows_of(str(tmp_path), scratch, format="webdataset")
    assert len(reads) < 20


def test_an_index_is_read_within_the_limits_of_pictures(s3: S3Server, scratch: Uri) -> None:
    s3.create_bucket("limits")
    s3.put("limits", "a.tar", tar(pictures(100, 2000)))
    with s3.recorded() as requests:
        assert len(rows_of("s3://limits/a.tar", scratch, Fetcher(FetchSettings(max_object_bytes=20_000)))) == 100
    assert sum(method == "GET" for method, _ in requests) >= 100 * 2560 // 20_000
    s3.deny("limits", "")
    with pytest.raises(ManifestError, match=r"a\.tar cannot be indexed: access_denied"):
        rows_of("s3://limits/a.tar", scratch)
    with pytest.raises(ManifestError, match=r"uri_not_allowed: .*outside the allowed roots; see images\.allowed_roots"):
        rows_of("s3://limits/a.tar", scratch, Fetcher(policy=AccessPolicy((Uri("s3://bucket/other"),))))


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_with_an_index_beside_it_a_shard_costs_few_requests(
    s3: S3Server, scratch: Uri, format: int, caplog: pytest.LogCaptureFixture
) -> None:
    members = {f"{i:03d}.{suffix}": bytes(1_100_000) for i in range(12) for suffix in ("left.jpg", "right.jpg")}
    folder = f"idx{format}"
    content = tar({**members, f"{'n' * 150}.jpg": b"long", "last.json": b"{}"}, format)
    s3.put("bucket", f"{folder}/a/0.tar", content)
    plain, counts = [], []
    for index in (None, idx(content)):
        if index is not None:
            s3.put("bucket", f"{folder}/a/0.idx", index)
        for uri in (f"s3://bucket/{folder}/a/0.tar", f"s3://bucket/{folder}/a"):
            with s3.recorded() as requests:
                plain.append(list(rows_of(uri, scratch).items()))
            counts.append(len(requests))
    print(
        f"{len(content):,} bytes, {len(members) + 2} members: {counts[:2]} requests without, {counts[2:]} with an index"
    )
    assert plain[0] == plain[1] == plain[2] == plain[3]
    assert len(plain[0]) == len(members) + 1
    assert min(counts[:2]) > len(members)
    assert all(with_one <= without - 18 for without, with_one in zip(counts[:2], counts[2:], strict=True))
    assert "not used" not in caplog.text
    s3.put("bucket", f"{folder}/b/0.tar", tar(pictures(3)))
    with s3.recorded() as requests:
        rows_of(f"s3://bucket/{folder}/b", scratch)
    assert not [path for _, path in requests if ".idx" in path]


def _moved(index: bytes) -> bytes:
    return b"\n".join(
        b" ".join(
            str(int(field) + 512).encode() if i % 4 == 1 and n else field for i, field in enumerate(line.split(b" "))
        )
        for n, line in enumerate(index.split(b"\n"))
    )


INDEXED = {f"{i:02d}.jpg": b"%02d" % i * 300 for i in range(9)}
UNFIT: dict[str, tuple[bytes, str]] = {
    "of a longer shard": (idx(tar({**INDEXED, "09.jpg": b"1"})), "does not fit the shard at byte"),
    "of what is far behind": (
        idx(tar(INDEXED)).replace(b" 9\n", b" 10\n") + b"jpg 30720 10 09.jpg\n",
        "goes beyond the end",
    ),
    "of a shorter shard": (idx(tar(dict(list(INDEXED.items())[:-1]))), "does not fit the shard at byte"),
    "without the first": (
        idx(tar(INDEXED)).replace(b"jpg 512 600 00.jpg\n", b"").replace(b" 9", b" 8", 1),
        "does not fit",
    ),
    "of another shard": (idx(tar({**INDEXED, "04.jpg": bytes(2000), "05.jpg": b""})), "does not fit the shard at byte"),
    "of other names": (
        idx(tar({name.replace("0", "1"): data for name, data in INDEXED.items()})),
        "does not fit the shard",
    ),
    "moved": (_moved(idx(tar(INDEXED))), "does not fit the shard at byte"),
    "not in blocks": (idx(tar(INDEXED)).replace(b" 512 ", b" 500 "), "does not fit a tar in line 2"),
    "overlapping": (idx(tar(INDEXED)).replace(b" 512 600 ", b" 512 60000 "), "does not fit a tar in line 3"),
    "a line less": (idx(tar(INDEXED))[: -len("jpg 12800 600 08.jpg\n")], "is cut off"),
    "cut in a line": (idx(tar(INDEXED))[:-3], "is cut off"),
    "garbage": (b"v1.2 9\njpg 512 many 00.jpg\n", "is damaged, or .* in line 2"),
    "huge numbers": (b"v1.2 1\njpg 512 %s 00.jpg\n" % (b"9" * 5000), "is damaged, or .* in line 2"),
    "spaces": (idx(tar({"a b.jpg": b"1"})), "is damaged, or has names with spaces, in line 2"),
    "quoted": (b"v1.2 1\njpg 512 600 \\303\\251.jpg\n", "has names that need quotes, in line 2"),
    "not ASCII": ("v1.2 1\njpg 512 600 é.jpg\n".encode(), "is no index of names in ASCII"),
    "v1.1": (idx(tar(INDEXED), "v1.1"), "knows no names"),
    "a later version": (b"v2.0 1\n", "is of no known version"),
    "a web page": (b"<!DOCTYPE html>\n<html></html>\n", "is of no known version"),
    "empty": (b"", "is no index"),
    "no sample": (b"v1.2 0\n", "is cut off"),
    "too large": (b"v1.2 1\n" + bytes(70_000), r"cannot be read \(too_large\)"),
    "old": (idx(tar(INDEXED)), "is older than the shard"),
}


@pytest.mark.parametrize("kind", UNFIT)
def test_an_index_that_does_not_fit_is_named_and_the_shard_read(
    tmp_path: Path, scratch: Uri, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    content, reason = UNFIT[kind]
    shard = write(tmp_path / "d" / "a.tar", tar(INDEXED))
    fetcher = Fetcher(FetchSettings(max_object_bytes=60_000))
    expected = rows_of(shard, scratch, fetcher)
    index = write(tmp_path / "d" / "a.idx", content)
    if kind == "old":
        os.utime(index, ns=(0, os.stat(shard).st_mtime_ns - 1000))
    for uri in (shard, str(tmp_path / "d")):
        caplog.clear()
        assert rows_of(uri, scratch, fetcher, format="webdataset") == expected
        assert re.search(rf"1 \.idx file is not used, .*: that of a\.tar .*{reason}", caplog.text), caplog.text
    assert len(expected) == len(INDEXED)


@pytest.mark.parametrize("kept", [5 * 1536 + 512 + 100, 5 * 1536, 5 * 1536 + 512, 512])
def test_of_a_truncated_shard_an_index_knows_what_is_lost(
    tmp_path: Path, scratch: Uri, kept: int, caplog: pytest.LogCaptureFixture
) -> None:
    whole = tar(INDEXED)
    path = write(tmp_path / "a.tar", whole[:kept])
    write(tmp_path / "a.idx", idx(whole))
    rows = rows_of(path, scratch)
    assert list(rows) == [f"a.tar/{name}" for name in INDEXED]
    assert f"a.tar is cut off at byte {kept}" in caplog.text
    found = dict(Fetcher().fetch_in_turn([UriText(row["image_uri"]) for row in rows.values()]))
    codes = [getattr(found[i], "code", "") for i in range(len(INDEXED))]
    assert codes == [""] * (kept // 1536) + ["truncated"] * (len(INDEXED) - kept // 1536)


def test_an_index_may_leave_out_what_is_no_picture(
    tmp_path: Path, scratch: Uri, caplog: pytest.LogCaptureFixture
) -> None:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as file:
        for name, kind in (("./", "dir"), ("./a.jpg", ""), ("./._a.jpg", ""), ("./README", ""), ("l.jpg", "link")):
            entry = tarfile.TarInfo(name)
            entry.type = {"dir": tarfile.DIRTYPE, "link": tarfile.SYMTYPE}.get(kind, tarfile.REGTYPE)
            entry.linkname = "a.jpg" if kind == "link" else ""
            entry.size = 0 if kind else 700
            file.addfile(entry, io.BytesIO(bytes(700)))
    path = write(tmp_path / "a.tar", sink.getvalue())
    expected = rows_of(path, scratch)
    write(tmp_path / "a.idx", b"v1.2 2\njpg 1024 700 ./a.jpg\n./README 4096 700 ./README\n")
    assert rows_of(path, scratch) == expected
    assert list(expected) == ["a.tar/a.jpg"]
    assert "not used" not in caplog.text
