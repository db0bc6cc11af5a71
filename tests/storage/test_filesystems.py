from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from botocore.utils import parse_timestamp  # type: ignore[import-untyped]

from pipeline.storage import filesystems
from pipeline.storage.filesystems import S3Environment, open_filesystem, s3_environment
from pipeline.storage.uris import Uri, UriError
from testing.s3_server import CLIENT_ENVIRONMENT, S3Server

TABLE = pa.table({"image_id": [1, 2, 3]})


class TestLocal:
    def test_path_and_file_uri(self, tmp_path: Path) -> None:
        target = tmp_path / "a b?#.parquet"
        filesystem, path = open_filesystem(Uri(str(target)))
        assert path == str(target)
        pq.write_table(TABLE, path, filesystem=filesystem)
        filesystem, path = open_filesystem(Uri(target.as_uri()))
        assert pq.read_table(path, filesystem=filesystem).equals(TABLE)

    def test_relative_path_becomes_absolute(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        assert open_filesystem(Uri("out/"))[1] == str(tmp_path / "out")


class TestS3:
    def test_round_trip(self, s3: S3Server) -> None:
        filesystem, path = open_filesystem(Uri("s3://bucket/dir/a?b#c%20.parquet"))
        assert path == "bucket/dir/a?b#c%20.parquet"
        pq.write_table(TABLE, path, filesystem=filesystem)
        assert pq.read_table(path, filesystem=filesystem).equals(TABLE)
        filesystem, path = open_filesystem(Uri("s3a://bucket/dir/"))
        assert path == "bucket/dir"
        listed = filesystem.get_file_info(pafs.FileSelector(path))
        assert [info.path for info in listed] == ["bucket/dir/a?b#c%20.parquet"]

    def test_service_specific_endpoint_wins(self, s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3.endpoint)
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
        s3.put("bucket", "x", b"abc")
        filesystem, path = open_filesystem(Uri("s3://bucket/x"))
        assert filesystem.open_input_stream(path).read() == b"abc"

    def test_anonymous(self, s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_NO_SIGN_REQUEST", "true")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        filesystem, _ = open_filesystem(Uri("s3://bucket/x"))
        assert filesystem.get_file_info("bucket/none").type == pafs.FileType.NotFound

    def test_nothing_pickled_holds_a_key(self, s3: S3Server) -> None:
        filesystem, _ = open_filesystem(Uri("s3://bucket/x"))
        pickled = pickle.dumps(filesystem)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            assert CLIENT_ENVIRONMENT[name].encode() not in pickled

    def test_another_process_opens_it_from_the_uri(self, s3: S3Server) -> None:
        uri = s3.put("bucket", "elsewhere", b"from afar")
        script = (
            "import sys\n"
            "from pipeline.storage.filesystems import open_filesystem\n"
            "from pipeline.storage.uris import Uri\n"
            "filesystem, path = open_filesystem(Uri(sys.argv[1]))\n"
            "sys.stdout.buffer.write(filesystem.open_input_stream(path).read())"
        )
        command = [sys.executable, "-c", script, uri]
        run = subprocess.run(command, capture_output=True, check=True, env={**os.environ, **s3.environment})
        assert run.stdout == b"from afar"


class TestS3Environment:
    @pytest.mark.parametrize(
        ("variables", "expected"),
        [
            ({"AWS_ENDPOINT_URL": "http://h:1"}, S3Environment("http://h:1", "us-east-1", False)),
            (
                {"AWS_ENDPOINT_URL": "http://h:1", "AWS_REGION": "eu-west-1"},
                S3Environment("http://h:1", "eu-west-1", False),
            ),
            ({"AWS_DEFAULT_REGION": "eu-west-2"}, S3Environment(None, "eu-west-2", False)),
            (
                {"AWS_DEFAULT_REGION": "eu-west-2", "AWS_REGION": "eu-west-1", "AWS_NO_SIGN_REQUEST": "1"},
                S3Environment(None, "eu-west-1", True),
            ),
            ({"AWS_REGION": "x", "AWS_NO_SIGN_REQUEST": "false"}, S3Environment(None, "x", False)),
        ],
    )
    def test_variables(
        self, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: S3Environment
    ) -> None:
        for name in list(os.environ):
            if name.startswith("AWS_"):
                monkeypatch.delenv(name)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        assert s3_environment("bucket") == expected

    def test_endpoint_without_scheme(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL", "127.0.0.1:9000")
        with pytest.raises(UriError, match="http://"):
            s3_environment("bucket")


class TestOtherSchemes:
    def test_fsspec(self) -> None:
        filesystem, path = open_filesystem(Uri("memory://dir/a.parquet"))
        pq.write_table(TABLE, path, filesystem=filesystem)
        filesystem, path = open_filesystem(Uri("memory://dir/a.parquet"))
        assert pq.read_table(path, filesystem=filesystem).equals(TABLE)

    def test_missing_package_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "gcsfs", None)
        with pytest.raises(UriError, match="gcsfs") as caught:
            open_filesystem(Uri("gs://bucket/a"))
        assert caught.value.code == "unsupported_scheme"

    def test_unknown_scheme(self) -> None:
        with pytest.raises(UriError, match="nope://") as caught:
            open_filesystem(Uri("nope://bucket/a"))
        assert caught.value.code == "unsupported_scheme"

    @pytest.mark.parametrize("uri", ["", "s3://", "s3://KEY:SECRET@bucket/a", "zip://a::s3://b/c.zip"])
    def test_bad_uri(self, uri: str) -> None:
        with pytest.raises(UriError) as caught:
            open_filesystem(Uri(uri))
        assert caught.value.code == "bad_uri"
        assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "2026-01-31T02:00:00.000Z",
        "2026-01-31T02:00:00Z",
        "2026-01-31T02:00:00.123456Z",
        "2026-01-31T02:00:00.1234567Z",
        "2026-01-31T02:00:00+01:00",
        "2026-01-31 02:00:00Z",
        "Sat, 31 Jan 2026 02:00:00 GMT",
        "1769824800",
        "20260131",
        1769824800,
    ],
)
def test_times_are_those_of_botocore(text: Any) -> None:
    found, wanted = filesystems._timestamp(text), parse_timestamp(text)
    assert found == wanted
    assert found.utcoffset() == wanted.utcoffset()


def test_no_time_is_botocores_error() -> None:
    with pytest.raises(ValueError, match="Invalid timestamp"):
        filesystems._timestamp("2026-99-99T02:00:00.000Z")
