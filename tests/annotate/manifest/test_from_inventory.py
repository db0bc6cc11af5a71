from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.annotate.config import ManifestConfig
from pipeline.annotate.manifest.from_inventory import _pictures
from pipeline.annotate.manifest.open import Manifest, open_manifest
from pipeline.annotate.manifest.rules import ManifestError
from pipeline.images.left_out import LeftOut
from pipeline.storage.uris import Uri
from testing.s3_server import S3Server
from tests.annotate.manifest.manifest_cases import read_all, read_all_ids, write

TIME = datetime(2026, 5, 4, 3, 2, 1, tzinfo=timezone.utc)
KEYS = ["a.jpg", "b/c d+e%20.png", "b//d.JPEG", "ü/ø&=,\"'.webp", "top\n.png"]
OTHERS = ["notes.txt", ".hidden.jpg", "b/.x/y.jpg", "folder.jpg/", "jpg"]
# As Parquet has them, in the order in which S3 writes them.
COLUMNS = ("bucket", "key", "version_id", "is_latest", "is_delete_marker", "size", "last_modified_date", "e_tag")
CSV_NAMES = ("Bucket", "Key", "VersionId", "IsLatest", "IsDeleteMarker", "Size", "LastModifiedDate", "ETag")
WITHOUT_VERSIONS = ("bucket", "key", "size", "last_modified_date", "e_tag")

Row = dict[str, Any]


def row(key: str, version: int = 0, latest: bool = True, marker: bool = False) -> Row:
    size = None if marker else len(key) + version
    etag = None if marker else hashlib.md5(f"{key} {version}".encode()).hexdigest()
    values = ("source", key, f"v{version}", latest, marker, size, TIME.replace(microsecond=250_000), etag)
    return dict(zip(COLUMNS, values, strict=True))


def csv_file(rows: list[Row], columns: tuple[str, ...]) -> bytes:
    """As S3 writes it: no header, all in quotes, keys as in a URL; gzip."""
    text = io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n")
    for each in rows:
        shown = {
            **{name: "" if value is None else str(value) for name, value in each.items()},
            "key": quote_plus(each["key"], safe="/"),
            "is_latest": str(each["is_latest"]).lower(),
            "is_delete_marker": str(each["is_delete_marker"]).lower(),
            "last_modified_date": each["last_modified_date"].strftime("%Y-%m-%dT%H:%M:%S.250Z"),
        }
        writer.writerow([shown[name] for name in columns])
    return gzip.compress(text.getvalue().encode())


def parquet_file(rows: list[Row], columns: tuple[str, ...]) -> bytes:
    types = {"is_latest": pa.bool_(), "is_delete_marker": pa.bool_(), "size": pa.int64()}
    types["last_modified_date"] = pa.timestamp("ms", "UTC")
    schema = pa.schema([(name, types.get(name, pa.string())) for name in columns])
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), sink, row_group_size=3)
    return sink.getvalue().to_pybytes()


def inventory(kind: str, *files: list[Row], columns: tuple[str, ...] = COLUMNS) -> dict[str, bytes]:
    """Its files by their places in the folder of a configuration, ``manifest.json`` last."""
    make, suffix = (csv_file, "csv.gz") if kind == "CSV" else (parquet_file, "parquet")
    if kind == "CSV":
        schema = ", ".join(name for name, own in zip(CSV_NAMES, COLUMNS, strict=True) if own in columns)
    else:
        fields = {"size": "optional int64 size;", "last_modified_date": "optional int64 {} (TIMESTAMP(MILLIS,true));"}
        fields |= dict.fromkeys(("is_latest", "is_delete_marker"), "optional boolean {};")
        lines = (fields.get(name, "required binary {} (STRING);").format(name) for name in columns)
        schema = f"message s3.inventory {{  {'  '.join(lines)}}}"
    names = [f"data/{number}.{suffix}" for number in range(len(files))]
    manifest = {
        "sourceBucket": "source",
        "destinationBucket": "arn:aws:s3:::bucket",
        "version": "2016-11-30",
        "fileFormat": kind,
        "fileSchema": schema,
        "files": [{"key": f"inventories/source/nightly/{name}", "size": 1, "MD5checksum": "0"} for name in names],
    }
    content = {name: make(rows, columns) for name, rows in zip(names, files, strict=True)}
    return {**content, "2026-05-04T01-00Z/manifest.json": json.dumps(manifest).encode()}


def on_disk(folder: Path, files: dict[str, bytes]) -> str:
    *_, manifest = (write(folder / name, content) for name, content in files.items())
    return manifest


def opened(uri: str, scratch: Uri, **fields: Any) -> Manifest:
    return open_manifest(ManifestConfig(uri=uri, format="inventory", **fields), scratch)


def versions_of(manifest: Manifest) -> list[Row]:
    return [row for unit in manifest.units for row in manifest.read_versions(unit).to_pylist()]


@pytest.mark.parametrize("kind", ["CSV", "Parquet"])
class TestInventory:
    def test_pictures_and_their_versions(self, tmp_path: Path, scratch: Uri, kind: str) -> None:
        files = inventory(kind, [row(key) for key in KEYS[:2] + OTHERS], [], [row(key) for key in KEYS[2:]])
        manifest = opened(on_disk(tmp_path / "nightly", files), scratch)
        ids = [key for key in KEYS if key != "top\n.png"] + ["./top%0A.png"]
        assert read_all_ids(manifest) == ids
        assert [each["image_uri"] for each in read_all(manifest)] == [
            f"s3://source/{image_id.removeprefix('./')}" for image_id in ids
        ]
        expected = [row(key) for key in KEYS]
        assert versions_of(manifest) == [
            {"object_etag": each["e_tag"], "object_size": each["size"], "object_mtime": TIME} for each in expected
        ]

    def test_only_latest_versions_that_are_there(self, tmp_path: Path, scratch: Uri, kind: str) -> None:
        rows = [
            row("a.jpg", 2),
            row("a.jpg", 1, latest=False),
            row("gone.jpg", 2, marker=True),
            row("gone.jpg", 1, latest=False),
            row("back.jpg", 3),
            row("back.jpg", 2, latest=False, marker=True),
        ]
        manifest = opened(on_disk(tmp_path / "nightly", inventory(kind, rows)), scratch)
        assert read_all_ids(manifest) == ["a.jpg", "back.jpg"]
        assert [each["object_etag"] for each in versions_of(manifest)] == [rows[0]["e_tag"], rows[4]["e_tag"]]

    def test_of_current_versions(self, tmp_path: Path, scratch: Uri, kind: str) -> None:
        files = inventory(kind, [row(key) for key in KEYS[:2]], columns=WITHOUT_VERSIONS)
        manifest = opened(on_disk(tmp_path / "nightly", files), scratch)
        assert read_all_ids(manifest) == KEYS[:2]
        assert [each["object_size"] for each in versions_of(manifest)] == [len(key) for key in KEYS[:2]]

    def test_of_keys_alone(self, tmp_path: Path, scratch: Uri, kind: str) -> None:
        files = inventory(kind, [row("a.jpg")], columns=("bucket", "key"))
        manifest = opened(on_disk(tmp_path / "nightly", files), scratch)
        assert [list(each.values()) for each in versions_of(manifest)] == [[None] * 3]

    def test_below_a_prefix(self, tmp_path: Path, scratch: Uri, kind: str) -> None:
        """The ids are those that the folder has."""
        rows = [row(key) for key in ("images/a.jpg", "images/b/c.jpg", "images2/d.jpg", "images/.e.jpg", "f.jpg")]
        uri = on_disk(tmp_path / "nightly", inventory(kind, rows))
        for root in ("s3://source/images", "s3://source/images/"):
            manifest = opened(uri, scratch, image_root=root)
            assert read_all_ids(manifest) == ["a.jpg", "b/c.jpg"]
            assert [each["image_uri"] for each in read_all(manifest)] == [
                "s3://source/images/a.jpg",
                "s3://source/images/b/c.jpg",
            ]
        for other in ("s3://other/images", "/images"):
            with pytest.raises(ManifestError, match="image_root must be in the bucket of the inventory, s3://source"):
                opened(uri, scratch, image_root=other)

    def test_on_s3(self, s3: S3Server, scratch: Uri, kind: str) -> None:
        """In the bucket that the manifest names; or in another one, into which all of it was copied."""
        copied = f"copied-{kind.lower()}"
        s3.create_bucket(copied)
        files = inventory(kind, [row("a.jpg")])
        for bucket, place in (("bucket", f"inventories/source/{kind}"), (copied, "x")):
            for name, content in files.items():
                s3.put(bucket, f"{place}/{name}", content.replace(b"source/nightly/", f"source/{kind}/".encode()))
            for uri in (f"s3://{bucket}/{place}/2026-05-04T01-00Z/manifest.json", f"s3://{bucket}/{place}"):
                assert read_all_ids(opened(uri, scratch)) == ["a.jpg"]

    def test_it_lists_what_the_folder_lists(self, s3: S3Server, tmp_path: Path, scratch: Uri, kind: str) -> None:
        client = boto3.client("s3", endpoint_url=s3.endpoint)
        client.create_bucket(Bucket="source")
        rows = []
        for key in KEYS[:2] + OTHERS[:2]:
            made = client.put_object(Bucket="source", Key=key, Body=key.encode())
            time = client.head_object(Bucket="source", Key=key)["LastModified"]
            rows.append({**row(key), "size": len(key.encode()), "e_tag": made["ETag"], "last_modified_date": time})
        listed = open_manifest(ManifestConfig(uri="s3://source"), scratch)
        found = opened(on_disk(tmp_path / "nightly", inventory(kind, rows)), scratch / "other")
        assert sorted(read_all(found), key=str) == sorted(read_all(listed), key=str)
        assert sorted(versions_of(found), key=str) == sorted(versions_of(listed), key=str)


def test_the_newest_of_a_folder(tmp_path: Path, scratch: Uri) -> None:
    folder = tmp_path / "nightly"
    for day, key in (("03", "old.jpg"), ("04", "new.jpg")):
        files = inventory("CSV", [row(key)])
        write(
            folder / f"2026-05-{day}T01-00Z" / "manifest.json",
            files.popitem()[1].replace(b"0.csv", f"{day}.csv".encode()),
        )
        write(folder / "data" / f"{day}.csv.gz", files["data/0.csv.gz"])
    write(folder / "2026-05-05T01-00Z" / "manifest.checksum", "not written yet")
    write(folder / "hive" / "dt=2026-05-06-01-00" / "symlink.txt", "s3://bucket/x")
    assert read_all_ids(opened(str(folder), scratch)) == ["new.jpg"]
    with pytest.raises(ManifestError, match=r"holds no S3 Inventory: give its manifest\.json"):
        opened(str(folder / "data"), scratch)


@given(st.lists(st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12), max_size=8))
@settings(deadline=None, max_examples=50)
def test_any_key(texts: list[str]) -> None:
    keys = [f"{text}.jpg" for text in texts]
    for is_encoded in (True, False):
        rows = pa.table(
            {"key": pa.array([quote_plus(key, safe="/") if is_encoded else key for key in keys], pa.string())}
        )
        found = _pictures(rows, Uri("s3://source"), "", is_encoded, LeftOut())
        shown = [key for key in keys if not any(p.startswith(".") and p not in (".", "..") for p in key.split("/"))]
        assert len(found) == len(shown)
        plain = [key for key in shown if key.isprintable() and key.isascii()]
        assert [image_id for image_id in found["image_id"].to_pylist() if image_id in plain] == plain


class TestRefused:
    def change(self, tmp_path: Path, kind: str = "CSV", **changes: Any) -> str:
        files = inventory(kind, [row("a.jpg")])
        name, content = files.popitem()
        return on_disk(tmp_path / "nightly", {**files, name: json.dumps(json.loads(content) | changes).encode()})

    def refuse(self, uri: str, words: str, **fields: Any) -> None:
        with pytest.raises(ManifestError, match=words):
            opened(uri, Uri(str(Path(uri).parent / "scratch")), **fields)

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"fileFormat": "ORC"}, "its files are ORC; have the inventory written as Parquet or CSV"),
            ({"fileSchema": "Bucket, Size"}, "its fileSchema has no key"),
            ({"fileSchema": "Bucket, Key, VersionId, Size"}, "lists all versions and does not say which is the latest"),
            ({"fileSchema": 3}, "is not the manifest.json of an S3 Inventory"),
            ({"files": [1]}, "is not the manifest.json of an S3 Inventory"),
            ({"files": None}, "is not the manifest.json of an S3 Inventory"),
            ({"files": [{"key": "x/data/none.csv.gz"}]}, "none.csv.gz"),
            ({"fileSchema": "Bucket, Key"}, "0.csv.gz"),
            ({"files": []}, "lists no image"),
        ],
        ids=lambda value: str(value)[:40],
    )
    def test_manifests(self, tmp_path: Path, changes: dict[str, Any], words: str) -> None:
        self.refuse(self.change(tmp_path, **changes), words)

    def test_parquet_without_a_column(self, tmp_path: Path) -> None:
        schema = (
            "message s3.inventory { required binary bucket (UTF8); required binary key (UTF8); optional int64 sizes; }"
        )
        uri = self.change(tmp_path, "Parquet", fileSchema=schema.replace("sizes", "size"))
        assert read_all_ids(opened(uri, Uri(str(tmp_path / "scratch")))) == ["a.jpg"]
        write(tmp_path / "nightly" / "data" / "0.parquet", parquet_file([row("a.jpg")], ("bucket", "key")))
        self.refuse(uri, "0.parquet has no column 'size', which .*manifest.json says it has")

    def test_no_picture(self, tmp_path: Path) -> None:
        uri = on_disk(tmp_path / "nightly", inventory("CSV", [row("notes.txt"), row("x.jpg", marker=True)]))
        self.refuse(uri, r"lists no image; 1 file is left out.*1 .txt")

    def test_a_file_that_is_cut_off(self, tmp_path: Path) -> None:
        files = inventory("CSV", [row(f"{i}.jpg") for i in range(1000)])
        files["data/0.csv.gz"] = files["data/0.csv.gz"][:-500]
        self.refuse(on_disk(tmp_path / "nightly", files), "0.csv.gz")

    def test_other_files(self, tmp_path: Path) -> None:
        self.refuse(write(tmp_path / "manifest.json", "{"), "is not the manifest.json of an S3 Inventory")
        self.refuse(write(tmp_path / "manifest.json", "[" * 100_000), "is not the manifest.json of an S3 Inventory")
        self.refuse(self.change(tmp_path), "none can be carried", carry=("size",))
        self.refuse(self.change(tmp_path), "its columns are known", etag_column="mine")

    def test_one_without_its_format(self, tmp_path: Path, scratch: Uri) -> None:
        with pytest.raises(ManifestError, match=r"is an S3 Inventory: set manifest\.format: inventory"):
            open_manifest(ManifestConfig(uri=self.change(tmp_path)), scratch)
