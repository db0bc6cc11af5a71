"""Which version of an object was read: told by the very answer that brought its bytes, on every store."""

from __future__ import annotations

import hashlib
import os
import re
import uuid
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import boto3
import fsspec
import pytest

from pipeline.storage.access import AccessPolicy
from pipeline.storage.backoff import Backoff
from pipeline.storage.fetch.fetcher import Fetcher
from pipeline.storage.fetch.rules import Fetched, FetchSettings
from pipeline.storage.listing import list_files
from pipeline.storage.uris import Uri, UriText
from pipeline.storage.versions import ObjectVersion, microseconds, plain_etag, version_of_info
from testing.s3_server import S3Server
from testing.web import serving

TIME = datetime(2026, 5, 4, 3, 2, 1, tzinfo=timezone.utc)
TIME_US = microseconds(TIME)
TIME_TEXT = "Mon, 04 May 2026 03:02:01 GMT"


def fetch(uri: str) -> Fetched:
    place = re.match(r"(http|memory)://[^/]*", uri)  # read only below a root that names it
    policy = AccessPolicy(place and (Uri(place[0]),))
    return Fetcher(FetchSettings(), policy, Backoff(0.01, 0.02)).fetch(UriText(uri))


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


class TestS3:
    @pytest.mark.parametrize("key", ["a.jpg", "a//b.jpg"], ids=["obstore", "botocore"])
    def test_one_request_tells_all(self, s3: S3Server, key: str) -> None:
        uri = s3.put("bucket", key, b"content")
        told = boto3.client("s3", endpoint_url=s3.endpoint).head_object(Bucket="bucket", Key=key)
        with s3.recorded() as requests:
            data, version = fetch(uri)
        assert len(requests) == 1
        assert data == b"content"
        assert version == ObjectVersion(md5(b"content"), 7, microseconds(told["LastModified"]), None)

    @pytest.mark.parametrize("key", ["a.jpg", "a//b.jpg"], ids=["obstore", "botocore"])
    def test_a_bucket_that_keeps_versions(self, s3: S3Server, key: str) -> None:
        client, bucket = boto3.client("s3", endpoint_url=s3.endpoint), uuid.uuid4().hex
        client.create_bucket(Bucket=bucket)
        client.put_object(Bucket=bucket, Key="before.jpg", Body=b"old")
        client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
        made = [client.put_object(Bucket=bucket, Key=key, Body=body)["VersionId"] for body in (b"one", b"two")]
        assert fetch(f"s3://{bucket}/{key}").version[::3] == (md5(b"two"), made[1])
        assert fetch(f"s3://{bucket}/before.jpg").version[::3] == (md5(b"old"), None)  # whose VersionId is "null"
        client.delete_object(Bucket=bucket, Key=key, VersionId=made[1])
        assert fetch(f"s3://{bucket}/{key}").version[::3] == (md5(b"one"), made[0])

    def test_multipart(self, s3: S3Server) -> None:
        """Their ETag is a digest of digests, with the number of parts; the listing has the same one."""
        client, place = boto3.client("s3", endpoint_url=s3.endpoint), {"Bucket": "bucket", "Key": "parts/big.jpg"}
        upload = client.create_multipart_upload(**place)["UploadId"]
        bodies = [bytes(5 << 20), b"end"]
        parts = [
            {"PartNumber": n, "ETag": client.upload_part(**place, PartNumber=n, UploadId=upload, Body=body)["ETag"]}
            for n, body in enumerate(bodies, start=1)
        ]
        client.complete_multipart_upload(**place, UploadId=upload, MultipartUpload={"Parts": parts})
        digest = hashlib.md5(b"".join(hashlib.md5(body).digest() for body in bodies)).hexdigest()
        found = fetch("s3://bucket/parts/big.jpg").version
        assert (found.etag, found.size_bytes) == (f"{digest}-2", (5 << 20) + 3)
        assert [file.version for file in list_files(Uri("s3://bucket/parts"), with_versions=True)] == [found]

    def test_presigned(self, s3: S3Server) -> None:
        place = {"Bucket": "bucket", "Key": "signed.jpg"}
        client = boto3.client("s3", endpoint_url=s3.endpoint)
        client.put_object(**place, Body=b"content")
        url = client.generate_presigned_url("get_object", Params=place)
        with s3.recorded() as requests:
            found = fetch(url)
        assert len(requests) == 1
        assert found == fetch("s3://bucket/signed.jpg")


# Headers, and what they tell.
HEADERS: dict[str, tuple[dict[str, str], tuple[str | None, int | None, str | None]]] = {
    "strong": ({"ETag": '"abc"', "Last-Modified": TIME_TEXT}, ("abc", TIME_US, None)),
    "weak": ({"ETag": 'W/"abc"'}, ('W/"abc"', None, None)),
    "without quotes": ({"etag": "abc"}, ("abc", None, None)),
    "nothing": ({}, (None, None, None)),
    "empty": ({"ETag": '""', "Last-Modified": ""}, (None, None, None)),
    "no time": ({"ETag": '"a"', "Last-Modified": "yesterday"}, ("a", None, None)),
    "another zone": ({"Last-Modified": "Mon, 04 May 2026 05:02:01 +0200"}, (None, TIME_US, None)),
    "a version": ({"x-amz-version-id": "v1"}, (None, None, "v1")),
    "none kept": ({"x-amz-version-id": "null"}, (None, None, None)),
}


class _Handler(BaseHTTPRequestHandler):
    """Answers with the headers of a case; ``changing`` is another picture each time, and the first is cut off."""

    requests: list[str]

    def do_GET(self) -> None:
        self.requests.append(f"{self.command} {self.path}")
        name = self.path[1:].replace("%20", " ")
        if name == "moved":
            self.answer(b"", 302, {"Location": "/strong", "ETag": '"of the redirect"'})
        elif name == "changing":
            number = len(self.requests)
            self.answer(b"x" * number, 200, {"ETag": f'"{number}"'}, lacking=1 if number == 1 else 0)
        else:
            self.answer(b"content", 200, HEADERS[name][0])

    do_HEAD = do_GET

    def answer(self, body: bytes, status: int, headers: dict[str, str], lacking: int = 0) -> None:
        self.send_response(status)
        for header, value in {"Content-Length": str(len(body) + lacking), **headers}.items():
            self.send_header(header, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


class TestHttp:
    @pytest.mark.parametrize("name", HEADERS)
    def test_one_request_tells_what_its_headers_say(self, name: str) -> None:
        handler = type("Handler", (_Handler,), {"requests": []})
        with serving(handler) as url:
            data, version = fetch(f"{url}/{name.replace(' ', '%20')}")
        etag, time, version_id = HEADERS[name][1]
        assert (data, version) == (b"content", ObjectVersion(etag, 7, time, version_id))
        assert len(handler.requests) == 1

    def test_of_the_last_answer(self) -> None:
        with serving(type("Handler", (_Handler,), {"requests": []})) as url:
            assert fetch(f"{url}/moved").version.etag == "abc"

    def test_a_picture_that_changes_between_two_attempts(self) -> None:
        handler = type("Handler", (_Handler,), {"requests": []})
        with serving(handler) as url:
            assert fetch(f"{url}/changing") == (b"xx", ObjectVersion("2", 2))
        assert len(handler.requests) == 2


class TestLocal:
    def test_the_time_has_microseconds(self, tmp_path: Path) -> None:
        path = tmp_path / "a.jpg"
        path.write_bytes(b"content")
        os.utime(path, ns=(0, TIME_US * 1000 + 123_456_789))
        expected = ObjectVersion(None, 7, TIME_US + 123_456)
        assert fetch(str(path)) == (b"content", expected)
        assert [file.version for file in list_files(Uri(str(tmp_path)), with_versions=True)] == [expected]

    def test_a_link_is_its_target(self, tmp_path: Path) -> None:
        (tmp_path / "target").mkdir()
        (tmp_path / "target" / "b.jpg").write_bytes(b"content")
        (tmp_path / "a.jpg").symlink_to(tmp_path / "target" / "b.jpg")
        (tmp_path / "gone.jpg").symlink_to(tmp_path / "nothing")
        listed = {file.path: file.version for file in list_files(Uri(str(tmp_path)), with_versions=True)}
        assert listed["a.jpg"] == listed["target/b.jpg"] == fetch(str(tmp_path / "a.jpg")).version
        assert listed["gone.jpg"] == ObjectVersion()

    def test_what_is_written_while_it_is_read_is_a_later_one(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "a.jpg"
        path.write_bytes(b"content")
        before = os.stat(path).st_mtime_ns // 1000
        fstat = os.fstat

        def slow(descriptor: int) -> os.stat_result:
            found = fstat(descriptor)
            path.write_bytes(b"other, longer content")
            os.utime(path, ns=(0, (before + 5) * 1000))
            return found

        monkeypatch.setattr(os, "fstat", slow)
        assert fetch(str(path)) == (b"other, longer content", ObjectVersion(None, 21, before))

    def test_a_time_that_no_table_could_hold(self, tmp_path: Path) -> None:
        """Times before 1970 and in the far future are as the file system has them."""
        path = tmp_path / "a.jpg"
        path.write_bytes(b"x")
        os.utime(path, ns=(0, -5_000_000_000))
        assert fetch(str(path)).version.modified_us == -5_000_000


class TestFsspec:
    def test_memory(self) -> None:
        memory = fsspec.filesystem("memory")
        memory.pipe_file("/versions/a.jpg", b"content")
        created = memory.info("/versions/a.jpg")["created"]
        found = fetch("memory://versions/a.jpg")
        assert found == (b"content", ObjectVersion(None, 7, microseconds(created)))
        assert [file.version for file in list_files(Uri("memory://versions"), with_versions=True)] == [found.version]

    def test_replaced_between_the_two_requests(self, monkeypatch: pytest.MonkeyPatch) -> None:
        memory = fsspec.filesystem("memory")
        memory.pipe_file("/versions/b.jpg", b"content")
        info = type(memory).info

        def late(self: Any, path: str, **options: Any) -> Any:
            found = info(self, path, **options)
            memory.pipe_file("/versions/b.jpg", b"other, longer content")
            return found

        monkeypatch.setattr(type(memory), "info", late)
        assert fetch("memory://versions/b.jpg").version == ObjectVersion(size_bytes=21)


@pytest.mark.parametrize(
    ("info", "expected"),
    [
        ({"ETag": '"a"', "LastModified": TIME, "size": 1}, ObjectVersion("a", 1, TIME_US)),  # s3fs
        ({"etag": "CJ=", "updated": "2026-05-04T03:02:01.000Z", "size": 1}, ObjectVersion("CJ=", 1, TIME_US)),  # gcsfs
        ({"etag": "0x8D", "last_modified": TIME, "size": 1}, ObjectVersion("0x8D", 1, TIME_US)),  # adlfs
        ({"mtime": TIME.timestamp(), "size": 1 << 60}, ObjectVersion(None, 1 << 60, TIME_US)),  # sftp, local
        ({"mtime": TIME.replace(tzinfo=None), "size": None}, ObjectVersion(None, None, TIME_US)),
        ({"mtime": "soon", "created": TIME}, ObjectVersion(None, None, TIME_US)),
        ({"mtime": 1e300, "size": 0}, ObjectVersion(None, 0)),
    ],
)
def test_words_of_file_systems(info: dict[str, Any], expected: ObjectVersion) -> None:
    assert version_of_info(info) == expected


@pytest.mark.parametrize(
    ("etag", "expected"), [('"a"', "a"), ('W/"a"', 'W/"a"'), ("a", "a"), ('"', '"'), ('""', None), ("", None)]
)
def test_etags(etag: str, expected: str | None) -> None:
    assert plain_etag(etag) == expected
