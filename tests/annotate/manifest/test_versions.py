"""Versions of the pictures, as manifests of every format tell them."""

from __future__ import annotations

import hashlib
import json
import os
import string
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.annotate.config import ManifestConfig
from pipeline.annotate.manifest.open import Manifest, open_manifest
from pipeline.annotate.manifest.rules import ManifestError
from pipeline.annotate.manifest.versions import VERSION_COLUMNS, version_table
from pipeline.storage.fetch.fetcher import Fetcher
from pipeline.storage.uris import Uri, UriText
from pipeline.storage.versions import microseconds
from testing.s3_server import S3Server
from tests.annotate.manifest.manifest_cases import read_all, write, write_parquet

TIME = datetime(2026, 5, 4, 3, 2, 1, 250_000, tzinfo=timezone.utc)
ETAGS = ['"abc"', 'W/"d"', None, "0-2"]
SIZES = [1, 1 << 40, None, 0]
TIMES = ["2026-05-04T03:02:01.250Z", "2026-05-04 05:02:01.25+02:00", None, "2026-05-04T03:02:01.250000999"]
EXPECTED = [
    {"object_etag": "abc", "object_size": 1, "object_mtime": TIME},
    {"object_etag": 'W/"d"', "object_size": 1 << 40, "object_mtime": TIME},
    dict.fromkeys(VERSION_COLUMNS.names),
    {"object_etag": "0-2", "object_size": 0, "object_mtime": TIME},
]
URIS = [f"/pictures/{i}.jpg" for i in range(4)]
NAMES = ("etag", "size", "last_modified")


def versions_of(manifest: Manifest) -> list[dict[str, Any]]:
    tables = [manifest.read_versions(unit) for unit in manifest.units]
    assert [table.num_rows for table in tables] == [unit.num_rows for unit in manifest.units]
    assert {table.schema for table in tables} == {VERSION_COLUMNS}
    return pa.concat_tables(tables).to_pylist()


def write_manifest(kind: str, folder: Path, names: tuple[str, ...] = NAMES) -> str:
    columns = {"image_uri": URIS, **dict(zip(names, (ETAGS, SIZES, TIMES), strict=True))}
    path, table = folder / f"manifest.{kind}", pa.table(columns)
    if kind == "parquet":
        return write_parquet(path, columns, row_group_size=3)
    if kind in ("csv", "tsv"):
        rows = [[*columns], *zip(*columns.values(), strict=True)]
        quoted = [['"{}"'.format(str(v).replace('"', '""')) if v is not None else "" for v in row] for row in rows]
        return write(path, "".join(("\t" if kind == "tsv" else ",").join(row) + "\n" for row in quoted))
    rows = [{name: value for name, value in row.items() if value is not None} for row in table.to_pylist()]
    if kind == "jsonl":
        return write(path, "".join(json.dumps(row) + "\n" for row in rows))
    for number, row in enumerate(rows):
        row.update(id=number, file_name=row.pop("image_uri"))
    return write(path, json.dumps({"images": rows, "annotations": []}))


@pytest.mark.parametrize("kind", ["parquet", "csv", "tsv", "jsonl", "json"])
class TestColumns:
    def test_by_their_usual_names(self, tmp_path: Path, scratch: Uri, kind: str) -> None:
        manifest = open_manifest(ManifestConfig(uri=write_manifest(kind, tmp_path)), scratch)
        assert versions_of(manifest) == EXPECTED
        assert [row["image_uri"] for row in read_all(manifest)] == URIS

    def test_by_others_which_may_be_carried(self, tmp_path: Path, scratch: Uri, kind: str) -> None:
        names = ("digest", "bytes", "changed")
        config = ManifestConfig(
            uri=write_manifest(kind, tmp_path, names),
            **dict(zip(("etag_column", "size_column", "mtime_column"), names, strict=True)),
            carry=("digest",),
        )
        manifest = open_manifest(config, scratch)
        assert versions_of(manifest) == EXPECTED
        assert [row["digest"] or None for row in read_all(manifest)] == ETAGS

    def test_without_any(self, tmp_path: Path, scratch: Uri, kind: str) -> None:
        manifest = open_manifest(ManifestConfig(uri=write_manifest(kind, tmp_path, ("a", "b", "c"))), scratch)
        assert versions_of(manifest) == [dict.fromkeys(VERSION_COLUMNS.names)] * 4

    @pytest.mark.parametrize("column", ["etag_column", "size_column", "mtime_column"])
    def test_a_column_that_was_named_must_be_there(self, tmp_path: Path, scratch: Uri, kind: str, column: str) -> None:
        config = ManifestConfig(uri=write_manifest(kind, tmp_path), **{column: "absent"})
        with pytest.raises(ManifestError, match="no column 'absent'"):
            open_manifest(config, scratch)


def test_times_are_as_the_place_tells_them(tmp_path: Path, scratch: Uri) -> None:
    """In headers to the second, whatever a table says; on a disk to the microsecond."""
    uris = ["s3://bucket/a.jpg", "S3A://b/c", "https://host/a.jpg", "/a.jpg", "gs://bucket/a.jpg", "b.jpg", None]
    columns = {"image_id": range(7), "image_uri": uris, "last_modified": [TIME] * 7, "image_bytes": [None] * 6 + [b""]}
    uri = write_parquet(tmp_path / "m.parquet", columns)
    whole = TIME.replace(microsecond=0)
    for root, relative in (("s3://bucket", whole), ("/root", TIME)):
        manifest = open_manifest(ManifestConfig(uri=uri, image_root=root), scratch)
        times = [row["object_mtime"] for row in versions_of(manifest)]
        assert times == [whole, whole, whole, TIME, TIME, relative, None]


def test_lists_and_folders_have_no_columns(tmp_path: Path, scratch: Uri) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(b"x")
    text = write(tmp_path / "list.txt", "/a.jpg\n")
    assert versions_of(open_manifest(ManifestConfig(uri=text), scratch)) == [dict.fromkeys(VERSION_COLUMNS.names)]
    for uri in (text, str(tmp_path / "images")):
        with pytest.raises(ManifestError, match="column"):
            open_manifest(ManifestConfig(uri=uri, etag_column="mine"), scratch)


def test_files_that_differ_in_them(tmp_path: Path, scratch: Uri) -> None:
    """Hints need not be alike: a folder that was read before is read."""
    write_parquet(tmp_path / "p" / "1.parquet", {"image_uri": ["/a"], "size": [7]})
    write_parquet(tmp_path / "p" / "2.parquet", {"image_uri": ["/b"], "size": ["large"], "etag": ["x"]})
    manifest = open_manifest(ManifestConfig(uri=str(tmp_path / "p")), scratch)
    assert [tuple(row.values()) for row in versions_of(manifest)] == [(None, 7, None), ("x", None, None)]


def test_bytes_in_the_manifest(tmp_path: Path, scratch: Uri) -> None:
    """Their digest is the version, whatever a column says; pictures by URI beside them have that."""
    contents = [b"one", None, b""]
    columns = {"image_id": [1, 2, 3], "image_uri": [None, "/2.jpg", None], "etag": ["x", "y", "z"]}
    for images in ({"image_bytes": contents}, {"image_bytes": pa.array(contents, pa.large_binary())}):
        uri = write_parquet(tmp_path / "m.parquet", {**columns, **images})
        found = versions_of(open_manifest(ManifestConfig(uri=uri), scratch))
        digests = [f"sha256:{hashlib.sha256(content).hexdigest()}" for content in (b"one", b"")]
        assert [row["object_etag"] for row in found] == [digests[0], "y", digests[1]]
        assert [row["object_size"] for row in found] == [3, None, 0]
    structs = pa.array([{"bytes": b"one", "path": "a.jpg"}], pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    uri = write_parquet(tmp_path / "s.parquet", {"image_id": [1], "image": structs})
    assert versions_of(open_manifest(ManifestConfig(uri=uri), scratch))[0]["object_etag"] == digests[0]


def test_a_prefix_and_what_is_read_from_it_have_one_version(s3: S3Server, scratch: Uri) -> None:
    for name in ("a.jpg", "b/c d%20.png", "b//d.png"):
        s3.put("bucket", f"images/{name}", name.encode())
    manifest = open_manifest(ManifestConfig(uri="s3://bucket/images"), scratch)
    for row, version in zip(read_all(manifest), versions_of(manifest), strict=True):
        read = Fetcher().fetch(UriText(row["image_uri"])).version
        assert (version["object_etag"], version["object_size"]) == (read.etag, read.size_bytes)
        assert microseconds(version["object_mtime"]) == read.modified_us
        assert read.etag


def test_a_folder(tmp_path: Path, scratch: Uri) -> None:
    path = tmp_path / "images" / "a.jpg"
    path.parent.mkdir()
    path.write_bytes(b"content")
    os.utime(path, ns=(0, microseconds(TIME) * 1000 + 999))
    (version,) = versions_of(open_manifest(ManifestConfig(uri=str(path.parent), compare="size_mtime"), scratch))
    assert version == {"object_etag": None, "object_size": 7, "object_mtime": TIME}


class TestTypes:
    """What a column holds, and what it tells."""

    @pytest.mark.parametrize(
        ("values", "expected"),
        [
            (pa.array(["a", None]).dictionary_encode(), ["a", None]),
            (pa.array(["a", "b"], pa.large_string()), ["a", "b"]),
            (pa.array(["a", "b"], pa.string_view()), ["a", "b"]),
            (pa.array([1, 2]), [None, None]),
            (pa.array([b"a", b"\xff"]), [None, None]),
            (pa.array([["a"], None]), [None, None]),
            (pa.nulls(2), [None, None]),
            (pa.array([b"a", b"\xff"]).view(pa.string()), [None, None]),
        ],
    )
    def test_etags(self, values: pa.Array, expected: list[Any]) -> None:
        assert self.read("object_etag", values) == expected

    @pytest.mark.parametrize(
        ("values", "expected"),
        [
            (pa.array([1, None, -1], pa.int16()), [1, None, None]),
            (pa.array([(1 << 64) - 1, 1 << 62], pa.uint64()), [None, 1 << 62]),
            (pa.array([3.0, 1.5, float("nan"), 1e300, -0.0, None]), [3, None, None, None, 0, None]),
            (pa.array(["12", "3.00", "", "1e3", "-1", "9" * 18, "9" * 30]), [12, 3, *[None] * 3, 10**18 - 1, None]),
            (pa.array(["7"]).dictionary_encode(), [7]),
            (pa.array([True]), [None]),
            (pa.array([TIME]), [None]),
        ],
    )
    def test_sizes(self, values: pa.Array, expected: list[Any]) -> None:
        assert self.read("object_size", values) == expected

    @pytest.mark.parametrize(
        ("values", "expected"),
        [
            (pa.array([TIME, None]), [TIME, None]),
            (pa.array([TIME.replace(tzinfo=None)], pa.timestamp("us")), [TIME]),
            (pa.array([TIME], pa.timestamp("ms", "Asia/Tokyo")), [TIME]),
            (pa.array([microseconds(TIME) * 1000 + 999], pa.timestamp("ns", "UTC")), [TIME]),
            (pa.array([1 << 62, 0], pa.timestamp("s")), [None, datetime(1970, 1, 1, tzinfo=timezone.utc)]),
            (pa.array([-1], pa.timestamp("us")), [None]),
            (pa.array([TIME.timestamp(), float("nan"), 1e300, -1.0]), [TIME, None, None, None]),
            (pa.array([int(TIME.timestamp())]), [TIME.replace(microsecond=0)]),
            (pa.array([str(TIME.timestamp()), "soon", ""]), [TIME, None, None]),
            (pa.array(["2026-13-04T03:02:01Z", "2026-05-04T03:02:01.25Z", "2026-05-04"]), [None, TIME, None]),
            (pa.array([date(2026, 5, 4)]), [None]),
        ],
    )
    def test_times(self, values: pa.Array, expected: list[Any]) -> None:
        assert self.read("object_mtime", values) == expected

    def read(self, name: str, values: pa.Array) -> list[Any]:
        for given_values in (
            values,
            pa.chunked_array([values[:1], values[1:]]),
            pa.concat_arrays([values, values])[1:],
        ):
            table = version_table({name: given_values}, len(given_values))
            assert table.schema == VERSION_COLUMNS
            found = table[name].to_pylist()
        whole = version_table({name: values}, len(values))[name].to_pylist()
        assert found == [*whole[1:], *whole]
        return whole

    @given(st.datetimes(datetime(1970, 1, 1), datetime(9999, 12, 31)), st.integers(-14 * 60, 14 * 60))
    def test_any_iso_time(self, time: datetime, zone_minutes: int) -> None:
        zoned = time.replace(tzinfo=timezone(timedelta(minutes=zone_minutes)))
        utc_us = microseconds(zoned)
        expected = utc_us if 0 <= utc_us < 253_402_300_800_000_000 else None
        for text in (zoned.isoformat(), zoned.isoformat(" ", "microseconds")):
            found = version_table({"object_mtime": pa.array([text])}, 1)["object_mtime"][0]
            assert (found.value if found.is_valid else None) == expected

    @given(st.lists(st.one_of(st.none(), st.text(string.printable, max_size=30)), max_size=5))
    def test_any_text(self, texts: list[str | None]) -> None:
        values = pa.array(texts, pa.string())
        table = version_table(dict.fromkeys(VERSION_COLUMNS.names, values), len(texts))
        table.validate(full=True)
        assert table.schema == VERSION_COLUMNS


def test_what_pandas_and_arrow_write(tmp_path: Path, scratch: Uri) -> None:
    table = pa.table({"image_uri": URIS[:2], "size": [5.0, None], "last_modified": pa.array([TIME, None])})
    pacsv.write_csv(table, tmp_path / "arrow.csv")
    table.to_pandas().to_csv(tmp_path / "pandas.csv", index=False)
    for name in ("arrow.csv", "pandas.csv"):
        found = versions_of(open_manifest(ManifestConfig(uri=str(tmp_path / name)), scratch))
        assert [tuple(row.values()) for row in found] == [(None, 5, TIME), (None, None, None)], name
