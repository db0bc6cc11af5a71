from __future__ import annotations

import os
import re
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import boto3
import fsspec
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.annotate.config import ManifestConfig
from pipeline.annotate.manifest.from_folder import read_folder
from pipeline.annotate.manifest.open import open_manifest
from pipeline.annotate.manifest.parquet_copy import ROW_GROUP_ROWS, UnitWriter
from pipeline.annotate.manifest.rules import ManifestError
from pipeline.annotations.failure import ImageFailure
from pipeline.annotations.image_uris import picture_uri
from pipeline.annotations.pictures import PictureSource
from pipeline.storage import listing
from pipeline.storage.access import AccessPolicy
from pipeline.storage.fetch.fetcher import Fetcher
from pipeline.storage.uris import Uri, UriText, hide_column
from testing.s3_server import S3Server
from tests.annotate.manifest.manifest_cases import (
    read_all,
    read_all_ids,
    tar,
    write,
    write_parquet,
)

NAMES = ["b/1.JPG", "b.jpg", "b-1.jpeg", "a b%20#?.png", "ü.webp", "b/c/d.tiff", "x.pgm", "y.PBM", "y.pnm", "z.ppm"]
LISTED_AT = datetime(2026, 11, 27, tzinfo=timezone.utc)
NO_IMAGES = [".hidden.jpg", "b/.hidden/x.jpg", "notes.txt", "jpg", "b/c/readme"]
OUTPUT = ["labels/_lock.json", "labels/data/part-0.parquet", "labels/page/example.jpg", "labels/data/0.tar"]


class TestFolder:
    def test_local(self, tmp_path: Path) -> None:
        folder = tmp_path / "images 100%41"
        for name in NAMES + NO_IMAGES + ["scratch/old.jpg"]:
            write(folder / name, b"x")
        expected = sorted(NAMES)
        for uri in (str(folder), f"{folder}/", folder.as_uri()):
            manifest = open_manifest(ManifestConfig(uri=uri), Uri(str(folder / "scratch")))
            assert read_all_ids(manifest) == expected
            assert [row["image_uri"] for row in read_all(manifest)] == [str(folder / name) for name in expected]

    def test_links_are_followed_but_not_in_circles(self, tmp_path: Path, scratch: Uri) -> None:
        write(tmp_path / "elsewhere" / "1.jpg", b"x")
        write(tmp_path / "images" / "0.jpg", b"x")
        (tmp_path / "images" / "link").symlink_to(tmp_path / "elsewhere")
        (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "images")
        (tmp_path / "images" / "broken.jpg").symlink_to(tmp_path / "nothing")  # fails later, as a row
        manifest = open_manifest(ManifestConfig(uri=str(tmp_path / "images")), scratch)
        assert read_all_ids(manifest) == ["0.jpg", "broken.jpg", "link/1.jpg"]

    def test_s3(self, s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in NAMES + NO_IMAGES + ["scratch/old.jpg", "b/"]:
            s3.put("bucket", f"images/{name}", b"x")
        s3.put("bucket", "images2.jpg", b"x")
        expected = sorted(NAMES)
        for uri in ("s3://bucket/images", "s3a://bucket/images/"):
            manifest = open_manifest(ManifestConfig(uri=uri), Uri("s3://bucket/images/scratch/"))
            assert read_all_ids(manifest) == expected
            rows = read_all(manifest)
            assert [row["image_uri"] for row in rows] == [f"{uri.rstrip('/')}/{name}" for name in expected]

    def test_another_file_system(self, scratch: Uri) -> None:
        memory = fsspec.filesystem("memory")
        for name in ("/some-images/b.jpg", "/some-images/a/x.png", "/some-images/c.txt"):
            memory.pipe(name, b"x")
        manifest = open_manifest(ManifestConfig(uri="memory://some-images"), scratch)
        assert read_all_ids(manifest) == ["a/x.png", "b.jpg"]
        assert read_all(manifest)[0]["image_uri"] == "memory://some-images/a/x.png"


class TestOutputInTheFolder:
    """What a run writes is no part of what it reads; nor does it tell what the folder is."""

    @pytest.mark.parametrize("names", [["a.jpg", "labels-2/b.jpg", "z.jpg"], ["z.jpg"]])
    @pytest.mark.parametrize("kind", ["auto", "folder"])
    def test_on_any_storage(
        self, tmp_path: Path, scratch: Uri, s3: S3Server, caplog: pytest.LogCaptureFixture, kind: str, names: list[str]
    ) -> None:
        memory = fsspec.filesystem("memory")
        nested = f"nested-{kind}-{len(names)}"
        for name in names + OUTPUT:
            write(tmp_path / "images" / name, b"x")
            s3.put("bucket", f"{nested}/{name}", b"x")
            memory.pipe(f"/{nested}/{name}", b"x")
        for root in (str(tmp_path / "images"), f"s3://bucket/{nested}", f"memory://{nested}"):
            config = ManifestConfig.model_validate({"uri": root, "format": kind})
            for output in (f"{root}/labels", f"{root}/labels/"):
                assert read_all_ids(open_manifest(config, scratch, output_uri=Uri(output))) == names
        assert "left out" not in caplog.text

    def test_by_whatever_path_it_is_named(self, tmp_path: Path, scratch: Uri) -> None:
        write(tmp_path / "images" / "b.jpg", b"x")
        for name in OUTPUT:
            write(tmp_path / "elsewhere" / name, b"x")
        (tmp_path / "images" / "link").symlink_to(tmp_path / "elsewhere" / "labels")
        for output in (tmp_path / "images" / "link", tmp_path / "elsewhere" / "labels"):
            manifest = open_manifest(ManifestConfig(uri=str(tmp_path / "images")), scratch, output_uri=Uri(str(output)))
            assert read_all_ids(manifest) == ["b.jpg"]

    def test_other_manifests(self, tmp_path: Path, scratch: Uri) -> None:
        """Parquet and tar shards in a folder."""
        output = Uri(str(tmp_path / "images" / "labels"))
        write_parquet(tmp_path / "images" / "labels" / "data" / "part-0.parquet", {"image_uri": ["/x"]})
        write(tmp_path / "images" / "labels" / "data" / "0.tar", tar({"x.jpg": b"x"}))
        write(tmp_path / "images" / "s.tar", tar({"b.jpg": b"x"}))

        def ids(kind: str) -> list[Any]:
            config = ManifestConfig.model_validate({"uri": str(tmp_path / "images"), "format": kind})
            return read_all_ids(open_manifest(config, scratch, output_uri=output))

        assert ids("auto") == ids("webdataset") == ["s.tar/b.jpg"]
        write_parquet(tmp_path / "images" / "m.parquet", {"image_uri": ["/a"]})
        assert ids("auto") == ids("parquet") == ["/a"]


class TestBadFolders:
    def test_what_is_refused(self, tmp_path: Path, scratch: Uri) -> None:
        folder = tmp_path / "folder"
        with pytest.raises(ManifestError, match="folder does not exist"):
            open_manifest(ManifestConfig(uri=str(folder)), scratch)
        write(folder / "notes.txt", "")
        with pytest.raises(ManifestError, match="has no image"):
            open_manifest(ManifestConfig(uri=str(folder)), scratch)
        with pytest.raises(ManifestError, match="holds no Parquet file"):
            open_manifest(ManifestConfig(uri=str(folder), format="parquet"), scratch)
        write(folder / "b.jpg", b"x")
        with pytest.raises(ManifestError, match="it has no columns"):
            open_manifest(ManifestConfig(uri=str(folder), carry=("k",)), scratch)
        with pytest.raises(ManifestError, match="image_root has no meaning"):
            open_manifest(ManifestConfig(uri=str(folder), image_root="/elsewhere"), scratch)

    @pytest.mark.parametrize("name", ["a.parquet", "c.parquet"])
    def test_images_and_parquet_need_a_format(self, tmp_path: Path, scratch: Uri, name: str) -> None:
        folder = tmp_path / "folder"
        write(folder / "b.jpg", b"x")
        write_parquet(folder / name, {"image_uri": ["/a"]})
        with pytest.raises(ManifestError, match="holds Parquet files and images"):
            open_manifest(ManifestConfig(uri=str(folder)), scratch)
        assert read_all_ids(open_manifest(ManifestConfig(uri=str(folder), format="parquet"), scratch)) == ["/a"]
        assert read_all_ids(open_manifest(ManifestConfig(uri=str(folder), format="folder"), scratch)) == ["b.jpg"]


class TestNames:
    def test_what_is_left_out_is_said(self, tmp_path: Path, scratch: Uri, caplog: pytest.LogCaptureFixture) -> None:
        for name in ("a.jpg", "b.txt", "c.TXT", "d.json", "readme", "x/e.JPG_original", "f." + "x" * 40):
            write(tmp_path / "images" / name, b"x")
        manifest = open_manifest(ManifestConfig(uri=str(tmp_path / "images")), scratch)
        assert read_all_ids(manifest) == ["a.jpg"]
        assert "6 files are left out" in caplog.text
        assert "2 .txt, 1 .jpg_original, 1 .json, 1 of other kinds, 1 without a suffix" in caplog.text
        (tmp_path / "images" / "a.jpg").unlink()
        with pytest.raises(ManifestError, match=r"has no image; 6 files are left out.*2 \.txt"):
            open_manifest(ManifestConfig(uri=str(tmp_path / "images")), scratch)

    def test_every_suffix_that_pillow_knows_for_what_is_decoded(self, tmp_path: Path, scratch: Uri) -> None:
        Image.init()
        decoded = {"JPEG", "MPO", "PNG", "WEBP", "BMP", "DIB", "TIFF", "GIF", "PPM"}
        others = {".pfm"}  # PPM's plugin opens it, but it holds 32-bit numbers
        names = sorted(f"a{suffix}" for suffix, kind in Image.EXTENSION.items() if kind in decoded)
        names = [name for name in names if name[1:] not in others]
        for name in names:
            write(tmp_path / "images" / name, b"x")
        assert read_all_ids(open_manifest(ManifestConfig(uri=str(tmp_path / "images")), scratch)) == names

    @pytest.mark.parametrize("kind", ["heic", "avif"])
    def test_a_photograph_that_is_not_decoded_is_a_failed_row(self, tmp_path: Path, scratch: Uri, kind: str) -> None:
        content = b"\0\0\0\x18ftyp" + kind.encode() + bytes(99)
        uri = write(tmp_path / "images" / f"a.{kind.upper()}", content)
        manifest = open_manifest(ManifestConfig(uri=str(tmp_path / "images")), scratch)
        assert read_all_ids(manifest) == [f"a.{kind.upper()}"]
        failure = PictureSource().read_many([UriText(uri)])[0]
        assert isinstance(failure, ImageFailure)
        assert failure.code == "unsupported_image"

    def test_names_that_cannot_be_shown_are_read_too(self, tmp_path: Path, scratch: Uri) -> None:
        folder = tmp_path / "images 1%41"
        names = [b"\xff.jpg", b"%FF.jpg", b"x\x80/\xfe\ny.jpg", b"a\nb.jpg", b"z.jpg"]
        try:
            for name in names:
                write(Path(os.fsdecode(os.fsencode(folder) + b"/" + name)), name)
        except OSError:
            pytest.skip("this file system takes no such names")
        rows = read_all(open_manifest(ManifestConfig(uri=str(folder)), scratch))
        ids = [row["image_id"] for row in rows]
        assert sorted(ids) == ["%FF.jpg", "./%FF.jpg", "./a%0Ab.jpg", "./x%80/%FE%0Ay.jpg", "z.jpg"]
        assert "".join(ids).isprintable()
        for row in rows:
            uri = UriText(row["image_uri"])
            name = row["image_id"]
            original = unquote_to_bytes(name[2:]) if name.startswith("./") else name.encode()
            assert Fetcher().fetch(uri).data == original
            assert str(uri) == uri.secret_text


KEYS = st.text(
    st.sampled_from("ab/.?#%&=+ :;@~\\'\"<>[]{}|^`*!$(),éß☃\U0001f600") | st.characters(exclude_categories=["C"]),
    max_size=30,
)
ODD_KEYS = ["a//b", "/tmp/x", "http://127.0.0.1/x", "./dot", "x/../up", "../../up", "a?b#c", "100%41", "a%2Fb", " lead"]
ODD_KEYS += ["s3://other/x", "a::b", "a\\b", "//h/x", "c:/d", "a b+c"]


@pytest.fixture
def client(s3: S3Server) -> Any:
    return boto3.client("s3", endpoint_url=s3.endpoint, region_name="us-east-1")


class TestKeys:
    """A key of an object store is what boto3 put there, wherever it is shown, and what is read under it."""

    def check(self, s3: S3Server, client: Any, prefix: str, keys: list[str], scratch: Uri) -> None:
        for key in keys:
            client.put_object(Bucket="bucket", Key=f"{prefix}/{key}", Body=key.encode())
        manifest = open_manifest(ManifestConfig(uri=f"s3://bucket/{prefix}"), scratch)
        rows = read_all(manifest)
        assert [row["image_id"] for row in rows] == sorted(keys)
        uris = [UriText(row["image_uri"]) for row in rows]
        assert list(map(str, uris)) == [f"s3://bucket/{prefix}/{key}" for key in sorted(keys)]
        assert dict(PictureSource().fetch_in_turn(uris)) == dict(enumerate(key.encode() for key in sorted(keys)))
        # What the output holds is what visualise, exports and training read.
        written = hide_column(pa.array([uri.secret_text for uri in uris])).to_pylist()
        assert [picture_uri(UriText(uri)) for uri in written] == uris

    def test_odd_ones(self, s3: S3Server, client: Any, scratch: Uri) -> None:
        self.check(s3, client, "odd", [f"{key}.jpg" for key in ODD_KEYS], scratch)

    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(keys=st.sets(KEYS, min_size=1, max_size=5))
    def test_any(self, s3: S3Server, client: Any, tmp_path_factory: pytest.TempPathFactory, keys: set[str]) -> None:
        hidden = {key for key in keys if re.search(r"(^|/)\.(?!\.?/)", key + ".jpg")}
        names = sorted({f"{key}.jpg" for key in keys - hidden})
        if not names or any(UriText(f"s3://b/{name}").holds_secrets for name in names):
            return
        folder = tmp_path_factory.mktemp("keys")
        self.check(s3, client, folder.name, names, Uri(str(folder)))

    def test_dots_are_refused_below_roots(self, s3: S3Server, client: Any) -> None:
        client.put_object(Bucket="bucket", Key="roots/../x.jpg", Body=b"x")
        policy = AccessPolicy((Uri("s3://bucket/roots"),))
        pictures = PictureSource(Fetcher(policy=policy))
        [(_, failure)] = pictures.fetch_in_turn([UriText("s3://bucket/roots/../x.jpg")])
        assert isinstance(failure, ImageFailure)
        assert failure.code == "uri_not_allowed"

    def test_fsspec_stores(self, scratch: Uri) -> None:
        memory = fsspec.filesystem("memory")
        names = ["a//b.jpg", "x/./c.jpg", "what?#1.jpg", "ü b%41.jpg"]
        for name in names:
            memory.pipe(f"/odd-keys/{name}", name.encode())
        manifest = open_manifest(ManifestConfig(uri="memory://odd-keys"), scratch)
        rows = read_all(manifest)
        assert [row["image_id"] for row in rows] == sorted(names)
        assert [row["image_uri"] for row in rows] == [f"memory://odd-keys/{name}" for name in sorted(names)]


def test_a_prefix_is_never_held_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more keys are listed than wait for their row group, and a page: millions take no more memory than this."""
    num_keys, listed, written, most = 3 * ROW_GROUP_ROWS + 1, 0, 0, 0

    class Client:
        def get_paginator(self, _: str) -> Client:
            return self

        def paginate(self, **_: str) -> Iterator[dict[str, Any]]:
            nonlocal listed, most
            for first in range(0, num_keys, 1000):
                keys = [f"images/{i:08d}.jpg" for i in range(first, min(first + 1000, num_keys))]
                listed += len(keys)
                most = max(most, listed - written)
                yield {"Contents": [{"Key": key, "Size": 1, "ETag": '"e"', "LastModified": LISTED_AT} for key in keys]}

    write_row_group = UnitWriter._write_row_group

    def counting(writer: UnitWriter, table: pa.Table) -> None:
        nonlocal written
        write_row_group(writer, table)
        written += table.num_rows

    monkeypatch.setattr(listing, "open_aws_client", lambda *_: Client())
    monkeypatch.setattr(UnitWriter, "_write_row_group", counting)
    parts = read_folder(ManifestConfig(uri="s3://bucket/images", format="folder"), Uri(str(tmp_path)))
    assert sum(unit.num_rows for unit in parts.units) == listed == num_keys
    assert most <= ROW_GROUP_ROWS + 1000
