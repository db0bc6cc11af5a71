from __future__ import annotations

import os
from pathlib import Path

import fsspec
import pytest

from pipeline.annotate.config import ManifestConfig
from pipeline.annotate.manifest.open import open_manifest
from pipeline.annotate.manifest.rules import ManifestError
from pipeline.storage.uris import Uri
from testing.s3_server import S3Server
from tests.annotate.manifest.manifest_cases import (
    read_all,
    read_all_ids,
    write,
    write_parquet,
)

NAMES = ["b/1.JPG", "b.jpg", "b-1.jpeg", "a b%20#?.png", "ü.webp", "b/c/d.tiff", "x.pgm", "y.PBM", "y.pnm", "z.ppm"]
NO_IMAGES = [".hidden.jpg", "b/.hidden/x.jpg", "notes.txt", "jpg", "b/c/readme"]


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
        with pytest.raises(ManifestError, match="no columns to carry"):
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

    def test_names_that_are_not_utf8(self, tmp_path: Path, scratch: Uri) -> None:
        folder = tmp_path / "folder"
        folder.mkdir()
        try:
            Path(os.fsdecode(os.fsencode(folder) + b"/\xff.jpg")).touch()
        except OSError:
            pytest.skip("this file system takes no such names")
        with pytest.raises(ManifestError, match="not UTF-8"):
            open_manifest(ManifestConfig(uri=str(folder)), scratch)
