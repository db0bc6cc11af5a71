from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.annotate.config import ManifestConfig
from pipeline.annotate.manifest import from_csv, parquet_copy
from pipeline.annotate.manifest.open import open_manifest
from pipeline.storage.uris import Uri
from tests.annotate.manifest.manifest_cases import (
    BadManifests,
    check_refused,
    each_of,
    read_all,
    read_all_ids,
    write,
)


class TestCsv:
    def test_ids_uris_and_carried_columns(self, tmp_path: Path, scratch: Uri) -> None:
        text = '\ufeffpath,note,image_id\na.jpg,"one, two\nthree",7\n\n"b c.jpg",,-8\n/d.jpg,NA,0\n'
        path = write(tmp_path / "m.csv", text)
        spec = ManifestConfig(uri=path, image_root="/root", uri_column="path", carry=("note",))
        manifest = open_manifest(spec, scratch)
        assert manifest.id_type == pa.int64()
        assert [tuple(row.values()) for row in read_all(manifest)] == [
            (7, "/root/a.jpg", None, "one, two\nthree"),
            (-8, "/root/b c.jpg", None, ""),
            (0, "/d.jpg", None, "NA"),
        ]

    @pytest.mark.parametrize(
        ("ids", "is_integer"),
        [
            (["1", "-20", "0"], True),
            (["0012", "13"], False),
            (["12", "1e3"], False),
            (["1", "null"], False),
            (["+1"], False),
            ([" 1"], False),
            (["-0"], False),
            (["12345678901234567890"], False),
            (["٣"], False),
        ],
        ids=str,
    )
    def test_ids_are_integers_only_if_all_are_written_so(
        self, tmp_path: Path, scratch: Uri, ids: list[str], is_integer: bool
    ) -> None:
        lines = "".join(f"{value},/x{index}\n" for index, value in enumerate(ids))
        manifest = open_manifest(ManifestConfig(uri=write(tmp_path / "m.csv", "image_id,image_uri\n" + lines)), scratch)
        assert read_all_ids(manifest) == ([int(value) for value in ids] if is_integer else ids)

    def test_long_files_are_cut_into_row_groups_and_files(
        self, tmp_path: Path, scratch: Uri, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(parquet_copy, "ROW_GROUP_ROWS", 100)
        monkeypatch.setattr(parquet_copy, "ROW_GROUPS_PER_FILE", 3)
        monkeypatch.setattr(from_csv, "_CSV_BLOCK_BYTES", 1000)
        text = gzip.compress(b"image_uri\n" + b"".join(b"/%d.jpg\n" % i for i in range(1050)))
        manifest = open_manifest(ManifestConfig(uri=write(tmp_path / "m.csv.gz", text)), scratch)
        assert [unit.num_rows for unit in manifest.units] == [100] * 10 + [50]
        assert sorted(os.listdir(scratch.path)) == [f"manifest-{i:05d}.parquet" for i in range(4)]
        assert read_all_ids(manifest) == [f"/{i}.jpg" for i in range(1050)]


BAD_MANIFESTS: BadManifests = {
    "empty file": ("m.csv", b"", {}, "is empty"),
    "header only": ("m.csv", b"image_uri\n", {}, "has no row"),
    "no uri column": ("m.csv", b"image_id,b\n1,2\n", {}, "no column 'image_uri'; it has: image_id, b"),
    "column twice": ("m.csv", b"image_uri,image_uri\n/a,/b\n", {}, "2 columns named 'image_uri'"),
    "too few fields": ("m.csv", b"a,image_uri\n1,/a\n2\n", {}, "line 3: 1 fields instead of 2"),
    "empty uri": ("m.csv", b"a,image_uri\n1,/a\n2,\n", {}, "line 3: the image URI is null or empty"),
    "empty id": ("m.csv", b"image_id,image_uri\n1,/a\n,/b\n", {}, "line 3: the id is null or empty"),
    "not UTF-8": ("m.csv", b"image_uri\n/\xff\n", {}, "line 2: not UTF-8"),
    "no root": ("m.csv", b"image_uri\na\n", {}, "line 2: .* set image_root"),
    "bytes": ("m.csv", b"image_uri,jpg\n/a,x\n", {"bytes_column": "jpg"}, "from Parquet only"),
}


@each_of(BAD_MANIFESTS)
def test_bad_manifests(tmp_path: Path, case: Any) -> None:
    check_refused(tmp_path, case)
