from __future__ import annotations

import gzip
import json
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data import manifest_formats
from pipeline.data.manifest import Manifest, ManifestError, ManifestSpec, ReadUnit, open_manifest
from tests.s3_server import S3Server, s3_server


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with s3_server() as server:
        server.create_bucket("bucket")
        yield server


@pytest.fixture
def scratch(tmp_path: Path) -> str:
    return str(tmp_path / "scratch")


def read_all(manifest: Manifest, batch_rows: int = 1024) -> list[dict[str, Any]]:
    tables = [
        table for unit in manifest.units for table in manifest.read_rows(unit, np.ones(unit.num_rows, bool), batch_rows)
    ]
    assert all(table.schema == manifest.schema for table in tables)
    return pa.concat_tables(tables).to_pylist()


def read_all_ids(manifest: Manifest) -> list[int | str]:
    arrays = [manifest.read_ids(unit) for unit in manifest.units]
    assert all(array.type == manifest.id_type for array in arrays)
    return [value for array in arrays for value in array.to_pylist()]


def write(path: Path, content: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def write_parquet(path: Path, columns: dict[str, Any], **options: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, **options)
    return str(path)


class TestParquet:
    def test_units_are_the_row_groups_of_the_original_files(self, tmp_path: Path, scratch: str) -> None:
        folder = tmp_path / "manifest"
        b = write_parquet(folder / "b.parquet", {"image_id": [6, 7], "image_uri": ["/6", "/7"]})
        a = write_parquet(
            folder / "a.parquet",
            {"image_id": [5, 1, 4, 2, 3], "image_uri": ["/5", "/1", "/4", "/2", "/3"]},
            row_group_size=2,
        )
        write_parquet(folder / "c.parquet", {"image_id": pa.array([], pa.int64()), "image_uri": pa.array([], "string")})
        write(folder / "_SUCCESS", "")
        manifest = open_manifest(ManifestSpec(str(folder)), scratch)
        assert manifest.units == (ReadUnit(a, 0, 2), ReadUnit(a, 1, 2), ReadUnit(a, 2, 1), ReadUnit(b, 0, 2))
        assert manifest.num_rows == 7
        assert read_all_ids(manifest) == [5, 1, 4, 2, 3, 6, 7]
        assert [row["image_uri"] for row in read_all(manifest)] == ["/5", "/1", "/4", "/2", "/3", "/6", "/7"]
        assert not os.path.exists(scratch)

    @pytest.mark.parametrize(
        ("id_type", "expected"),
        [
            (pa.int8(), pa.int64()),
            (pa.uint64(), pa.int64()),
            (pa.string(), pa.string()),
            (pa.large_string(), pa.string()),
            (pa.string_view(), pa.string()),
            (pa.dictionary(pa.int32(), pa.string()), pa.string()),
        ],
        ids=str,
    )
    def test_id_types(self, tmp_path: Path, scratch: str, id_type: pa.DataType, expected: pa.DataType) -> None:
        ids = pa.array([1, 2, 1]).cast(expected).cast(id_type)
        path = write_parquet(
            tmp_path / "m.parquet",
            {"image_id": ids, "image_uri": pa.array(["/a", "/b", "/c"], id_type if expected == pa.string() else None)},
        )
        manifest = open_manifest(ManifestSpec(path), scratch)
        assert manifest.id_type == expected
        assert read_all_ids(manifest) == pa.array([1, 2, 1]).cast(expected).to_pylist()
        assert [row["image_uri"] for row in read_all(manifest)] == ["/a", "/b", "/c"]

    def test_carried_columns_keep_their_types(self, tmp_path: Path, scratch: str) -> None:
        columns = {
            "image_id": ["x", "y"],
            "image_uri": ["/x", "/y"],
            "tags": pa.array([["a"], None], pa.list_(pa.string())),
            "box": pa.array([{"w": 1, "h": 2}, None], pa.struct([("w", pa.int16()), ("h", pa.int16())])),
            "image.source": pa.array([1, 2], pa.uint8()),
            "kind": pa.array(["a", "b"]).dictionary_encode(),
            "when": pa.array([0, None], pa.timestamp("ms", tz="UTC")),
        }
        path = write_parquet(tmp_path / "m.parquet", columns)
        carry = ("when", "image.source", "tags", "box", "kind")
        manifest = open_manifest(ManifestSpec(path, carry=carry), scratch)
        table = pa.table(columns)
        assert manifest.carried == pa.schema([table.schema.field(name) for name in carry])
        rows = list(manifest.read_rows(manifest.units[0], np.array([0, 1])))
        assert pa.concat_tables(rows).select(list(carry)).equals(table.select(list(carry)))

    def test_an_id_column_that_is_carried_too(self, tmp_path: Path, scratch: str) -> None:
        path = write_parquet(tmp_path / "m.parquet", {"key": pa.array([7], pa.int32()), "path": ["/7"]})
        spec = ManifestSpec(path, id_column="key", uri_column="path", carry=("key", "path"))
        manifest = open_manifest(spec, scratch)
        assert read_all(manifest) == [{"image_id": 7, "image_uri": "/7", "image_bytes": None, "key": 7, "path": "/7"}]
        assert manifest.carried.field("key").type == pa.int32()

    def test_relative_uris_join_the_root_and_are_the_ids(self, tmp_path: Path, scratch: str) -> None:
        path = write_parquet(tmp_path / "m.parquet", {"image_uri": ["a/1.jpg", "s3://b/2.jpg", "/c/3.jpg"]})
        manifest = open_manifest(ManifestSpec(path, image_root="s3://bucket/root/"), scratch)
        assert read_all_ids(manifest) == ["a/1.jpg", "s3://b/2.jpg", "/c/3.jpg"]
        rows = read_all(manifest)
        assert [row["image_id"] for row in rows] == ["a/1.jpg", "s3://b/2.jpg", "/c/3.jpg"]
        assert [row["image_uri"] for row in rows] == ["s3://bucket/root/a/1.jpg", "s3://b/2.jpg", "/c/3.jpg"]

    def test_bytes_only(self, tmp_path: Path, scratch: str) -> None:
        path = write_parquet(tmp_path / "m.parquet", {"image_id": [1, 2], "image_bytes": [b"one", b""]})
        manifest = open_manifest(ManifestSpec(path), scratch)
        assert manifest.has_bytes
        assert read_all(manifest) == [
            {"image_id": 1, "image_uri": None, "image_bytes": b"one"},
            {"image_id": 2, "image_uri": None, "image_bytes": b""},
        ]

    def test_each_row_needs_bytes_or_a_uri(self, tmp_path: Path, scratch: str) -> None:
        columns = {
            "image_id": [1, 2, 3],
            "image_uri": ["label.jpg", None, "/3.jpg"],  # the first is relative without a root: a label
            "image_bytes": [b"one", b"two", None],
        }
        manifest = open_manifest(ManifestSpec(write_parquet(tmp_path / "m.parquet", columns)), scratch)
        assert [tuple(row.values()) for row in read_all(manifest)] == [
            (1, "label.jpg", b"one"),
            (2, None, b"two"),
            (3, "/3.jpg", None),
        ]

    @pytest.mark.parametrize("statistics", [True, False])
    def test_rows_with_neither_are_refused(self, tmp_path: Path, scratch: str, statistics: bool) -> None:
        columns = {
            "image_id": [1, 2, 3, 4],
            "image_uri": ["/1", None, None, None],
            "image_bytes": [None, b"2", b"3", None],
        }
        path = write_parquet(tmp_path / "m.parquet", columns, write_statistics=statistics, row_group_size=3)
        with pytest.raises(ManifestError, match=r"m\.parquet, row group 1, row 1: the image URI is null"):
            open_manifest(ManifestSpec(path), scratch)

    def test_without_statistics(self, tmp_path: Path, scratch: str) -> None:
        columns = {"image_id": ["a", "b", ""], "image_uri": ["/a", "/b", "/c"]}
        path = write_parquet(tmp_path / "m.parquet", columns, write_statistics=False)
        with pytest.raises(ManifestError, match="row group 0, row 3: the id is null or empty"):
            open_manifest(ManifestSpec(path), scratch)

    def test_a_file_that_changes_underneath(self, tmp_path: Path, scratch: str) -> None:
        path = write_parquet(tmp_path / "m.parquet", {"image_uri": ["/a", "/b"]})
        manifest = open_manifest(ManifestSpec(path), scratch)
        write_parquet(tmp_path / "m.parquet", {"image_uri": ["/a"]})
        with pytest.raises(ManifestError, match="has changed since"):
            manifest.read_ids(manifest.units[0])
        write(tmp_path / "m.parquet", b"PAR1 no more")
        with pytest.raises(ManifestError, match=r"m\.parquet cannot be read"):
            next(manifest.read_rows(manifest.units[0], np.array([0])))

    @pytest.mark.parametrize(
        ("columns", "message"),
        [
            ({"image_uri": ["/a"]}, "column 'image_id' is in one of them only"),
            ({"image_id": ["1"], "image_uri": ["/a"], "k": [1]}, "ids are string, not int64"),
            ({"image_id": [1], "image_uri": ["/a"], "k": ["1"]}, "column 'k' is string, not int64"),
            ({"image_id": [1], "image_uri": ["/a"]}, "has no column 'k'"),
        ],
        ids=["no id", "other id type", "other carried type", "carried column missing"],
    )
    def test_files_that_differ(self, tmp_path: Path, scratch: str, columns: dict[str, Any], message: str) -> None:
        first = {"image_id": [1], "image_uri": ["/a"], "k": [1], "not used": [1.5]}
        write_parquet(tmp_path / "m" / "a.parquet", first)
        write_parquet(
            tmp_path / "m" / "b.parquet", {"k": [0], **columns} if message.startswith("column 'image") else columns
        )
        with pytest.raises(ManifestError, match=message) as raised:
            open_manifest(ManifestSpec(str(tmp_path / "m"), carry=("k",)), scratch)
        assert "b.parquet" in str(raised.value)


class TestReadRows:
    @pytest.fixture
    def manifest(self, tmp_path: Path, scratch: str) -> Manifest:
        columns = {"image_id": np.arange(1000), "image_bytes": [b"%d" % i for i in range(1000)]}
        return open_manifest(ManifestSpec(write_parquet(tmp_path / "m.parquet", columns)), scratch)

    @pytest.mark.parametrize(
        "rows",
        [[], [0], [999], [0, 999], [3, 4, 5, 500, 501], list(range(1000)), list(range(0, 1000, 7))],
        ids=["none", "first", "last", "both ends", "two clusters", "all", "every seventh"],
    )
    @pytest.mark.parametrize("batch_rows", [1, 64, 5000])
    def test_indices_and_masks(self, manifest: Manifest, rows: list[int], batch_rows: int) -> None:
        mask = np.zeros(1000, bool)
        mask[rows] = True
        for chosen in (np.array(rows, np.int64), np.array(rows, np.uint16), mask):
            tables = list(manifest.read_rows(manifest.units[0], chosen, batch_rows))
            assert [table.num_rows for table in tables[:-1]] == [batch_rows] * (len(tables) - 1)
            assert [value for table in tables for value in table["image_id"].to_pylist()] == rows
            assert [value for table in tables for value in table["image_bytes"].to_pylist()] == [
                b"%d" % i for i in rows
            ]

    @pytest.mark.parametrize(
        "rows",
        [np.ones(999, bool), np.array([1000]), np.array([-1, 3]), np.array([4, 3]), np.array([4, 4])],
        ids=["short mask", "behind the end", "negative", "descending", "repeated"],
    )
    def test_rows_that_make_no_sense(self, manifest: Manifest, rows: Any) -> None:
        with pytest.raises(ValueError, match=r"mask|indices"):
            list(manifest.read_rows(manifest.units[0], rows))

    def test_memory_is_bounded_within_a_row_group(self, tmp_path: Path, scratch: str) -> None:
        one = np.random.default_rng(0).bytes(1 << 18)
        path = write_parquet(
            tmp_path / "m.parquet",
            {"image_id": np.arange(200), "image_bytes": [one] * 200},
            use_dictionary=False,
            write_batch_size=4,  # a page is not cut within such a batch
            data_page_size=1 << 20,
        )
        manifest = open_manifest(ManifestSpec(path), scratch)
        before, peak = pa.total_allocated_bytes(), 0
        for _ in manifest.read_rows(manifest.units[0], np.ones(200, bool), batch_rows=4):
            peak = max(peak, pa.total_allocated_bytes() - before)
        assert peak < 16 << 20  # of 50 MB


class TestCsv:
    def test_ids_uris_and_carried_columns(self, tmp_path: Path, scratch: str) -> None:
        text = '\ufeffpath,note,image_id\na.jpg,"one, two\nthree",7\n\n"b c.jpg",,-8\n/d.jpg,NA,0\n'
        spec = ManifestSpec(
            write(tmp_path / "m.csv", text), image_root="/root", uri_column="path", carry=("note", "path")
        )
        manifest = open_manifest(spec, scratch)
        assert manifest.id_type == pa.int64()
        assert [tuple(row.values()) for row in read_all(manifest)] == [
            (7, "/root/a.jpg", None, "one, two\nthree", "a.jpg"),
            (-8, "/root/b c.jpg", None, "", "b c.jpg"),
            (0, "/d.jpg", None, "NA", "/d.jpg"),
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
        self, tmp_path: Path, scratch: str, ids: list[str], is_integer: bool
    ) -> None:
        lines = "".join(f"{value},/x{index}\n" for index, value in enumerate(ids))
        manifest = open_manifest(ManifestSpec(write(tmp_path / "m.csv", "image_id,image_uri\n" + lines)), scratch)
        assert read_all_ids(manifest) == ([int(value) for value in ids] if is_integer else ids)

    def test_long_files_are_cut_into_row_groups_and_files(
        self, tmp_path: Path, scratch: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(manifest_formats, "ROW_GROUP_ROWS", 100)
        monkeypatch.setattr(manifest_formats, "ROW_GROUPS_PER_FILE", 3)
        monkeypatch.setattr(manifest_formats, "_CSV_BLOCK_BYTES", 1000)
        text = gzip.compress(b"image_uri\n" + b"".join(b"/%d.jpg\n" % i for i in range(1050)))
        manifest = open_manifest(ManifestSpec(write(tmp_path / "m.csv.gz", text)), scratch)
        assert [unit.num_rows for unit in manifest.units] == [100] * 10 + [50]
        assert sorted(os.listdir(scratch)) == [f"manifest-{i:05d}.parquet" for i in range(4)]
        assert read_all_ids(manifest) == [f"/{i}.jpg" for i in range(1050)]


class TestJsonLines:
    def test_types_come_from_all_lines(self, tmp_path: Path, scratch: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(manifest_formats, "ROW_GROUP_ROWS", 2)
        records: list[dict[str, Any]] = [
            {"image_id": 3, "image_uri": "/3", "score": None, "meta": {"a": 1}},
            {"image_id": 1, "image_uri": "/1"},
            {"image_id": 2, "image_uri": "/2", "score": 1, "meta": {"a": 2}, "never": None},
            {"image_id": 4, "image_uri": "/4", "score": 2, "meta": {"a": 3, "b": "x"}},
            {"image_id": 5, "image_uri": "/5", "score": 0.5, "tags": ["t"]},
        ]
        text = "\n\n".join(map(json.dumps, records))
        spec = ManifestSpec(write(tmp_path / "m.jsonl", text), carry=("score", "meta", "tags", "never"))
        manifest = open_manifest(spec, scratch)
        assert manifest.carried == pa.schema(
            [
                ("score", pa.float64()),
                ("meta", pa.struct([("a", pa.int64()), ("b", pa.string())])),
                ("tags", pa.list_(pa.string())),
                ("never", pa.string()),
            ]
        )
        rows = read_all(manifest)
        assert [row["image_id"] for row in rows] == [3, 1, 2, 4, 5]
        assert [row["score"] for row in rows] == [None, None, 1.0, 2.0, 0.5]
        assert [row["meta"] for row in rows][2:] == [{"a": 2, "b": None}, {"a": 3, "b": "x"}, None]
        assert [row["tags"] for row in rows] == [None] * 4 + [["t"]]

    def test_dates_and_numbers_in_strings_stay_strings(self, tmp_path: Path, scratch: str) -> None:
        text = '{"image_id": "2020-01-01", "image_uri": "/a"}\n{"image_id": "007", "image_uri": "/b"}\n'
        manifest = open_manifest(ManifestSpec(write(tmp_path / "m.ndjson", text)), scratch)
        assert read_all_ids(manifest) == ["2020-01-01", "007"]


class TestCoco:
    def test_images(self, tmp_path: Path, scratch: str) -> None:
        content = {
            "images": [
                {"id": 9, "file_name": "a/9.jpg", "height": 3, "license": 1, "coco_url": "http://host/9"},
                {"id": 4, "file_name": "4.jpg", "height": 5, "license": None, "coco_url": "http://host/4"},
            ],
            "annotations": [{"id": 1, "image_id": 9, "category_id": 1, "segmentation": {"size": [1, 1]}}],
        }
        path = write(tmp_path / "m.json", json.dumps(content))
        manifest = open_manifest(ManifestSpec(path, image_root="/data", carry=("license",)), scratch)
        assert [tuple(row.values()) for row in read_all(manifest)] == [
            (9, "/data/a/9.jpg", None, 1),
            (4, "/data/4.jpg", None, None),
        ]
        manifest = open_manifest(ManifestSpec(path, uri_column="coco_url", id_column="file_name"), scratch)
        assert [tuple(row.values())[:2] for row in read_all(manifest)] == [
            ("a/9.jpg", "http://host/9"),
            ("4.jpg", "http://host/4"),
        ]


NAMES = ["b/1.JPG", "b.jpg", "b-1.jpeg", "a b%20#?.png", "ü.webp", "b/c/d.tiff", "z.ppm"]
NO_IMAGES = [".hidden.jpg", "b/.hidden/x.jpg", "notes.txt", "jpg", "b/c/readme"]


class TestFolder:
    def test_local(self, tmp_path: Path) -> None:
        folder = tmp_path / "images 100%41"
        for name in NAMES + NO_IMAGES + ["scratch/old.jpg"]:
            write(folder / name, b"x")
        expected = sorted(NAMES)
        for uri in (str(folder), f"{folder}/", folder.as_uri()):
            manifest = open_manifest(ManifestSpec(uri), str(folder / "scratch"))
            assert read_all_ids(manifest) == expected
            assert [row["image_uri"] for row in read_all(manifest)] == [str(folder / name) for name in expected]

    def test_links_are_followed_but_not_in_circles(self, tmp_path: Path, scratch: str) -> None:
        write(tmp_path / "elsewhere" / "1.jpg", b"x")
        write(tmp_path / "images" / "0.jpg", b"x")
        (tmp_path / "images" / "link").symlink_to(tmp_path / "elsewhere")
        (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "images")
        (tmp_path / "images" / "broken.jpg").symlink_to(tmp_path / "nothing")  # fails later, as a row
        manifest = open_manifest(ManifestSpec(str(tmp_path / "images")), scratch)
        assert read_all_ids(manifest) == ["0.jpg", "broken.jpg", "link/1.jpg"]

    def test_s3(self, s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in NAMES + NO_IMAGES + ["scratch/old.jpg", "b/"]:
            s3.put("bucket", f"images/{name}", b"x")
        s3.put("bucket", "images2.jpg", b"x")
        expected = sorted(NAMES)
        for uri in ("s3://bucket/images", "s3a://bucket/images/"):
            manifest = open_manifest(ManifestSpec(uri), "s3://bucket/images/scratch/")
            assert read_all_ids(manifest) == expected
            rows = read_all(manifest)
            assert [row["image_uri"] for row in rows] == [f"{uri.rstrip('/')}/{name}" for name in expected]

    def test_another_file_system(self, scratch: str) -> None:
        memory = fsspec.filesystem("memory")
        for name in ("/some-images/b.jpg", "/some-images/a/x.png", "/some-images/c.txt"):
            memory.pipe(name, b"x")
        manifest = open_manifest(ManifestSpec("memory://some-images"), scratch)
        assert read_all_ids(manifest) == ["a/x.png", "b.jpg"]
        assert read_all(manifest)[0]["image_uri"] == "memory://some-images/a/x.png"


class TestS3:
    def test_every_file_format(self, s3: S3Server, tmp_path: Path) -> None:
        parquet = Path(write_parquet(tmp_path / "m.parquet", {"image_id": [1, 2], "image_uri": ["a?#.jpg", "b.jpg"]}))
        files = {
            "t/m.csv": b"image_id,image_uri\n1,a?#.jpg\n2,b.jpg\n",
            "t/m.jsonl": b'{"image_id":1,"image_uri":"a?#.jpg"}\n{"image_id":2,"image_uri":"b.jpg"}\n',
            "t/m.json": b'{"images":[{"id":1,"file_name":"a?#.jpg"},{"id":2,"file_name":"b.jpg"}]}',
            "t/m.parquet": parquet.read_bytes(),
            "t/folder/part-0.parquet": parquet.read_bytes(),
        }
        for key, content in files.items():
            s3.put("bucket", key, content)
        for name in ("m.csv", "m.jsonl", "m.json", "m.parquet", "folder"):
            scratch = f"s3://bucket/t/scratch-{name}"
            manifest = open_manifest(ManifestSpec(f"s3://bucket/t/{name}", image_root="s3://bucket/images"), scratch)
            manifest = pickle.loads(pickle.dumps(manifest))  # noqa: S301
            assert read_all_ids(manifest) == [1, 2], name
            uris = [row["image_uri"] for row in read_all(manifest)]
            assert uris == ["s3://bucket/images/a?#.jpg", "s3://bucket/images/b.jpg"], name
            assert all(unit.file.startswith("s3://bucket/t/") for unit in manifest.units)

    def test_what_is_not_there(self, s3: S3Server) -> None:
        with pytest.raises(ManifestError, match=r"s3://bucket/none\.csv does not exist"):
            open_manifest(ManifestSpec("s3://bucket/none.csv"), "s3://bucket/scratch")
        with pytest.raises(ManifestError, match=r"NoSuchBucket|does not exist"):
            open_manifest(ManifestSpec("s3://no-such-bucket/x", format="folder"), "s3://bucket/scratch")


def parquet(**columns: Any) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue().to_pybytes()


# name: (file name, content, fields of the description, words of the message)
BAD_MANIFESTS: dict[str, tuple[str, bytes, dict[str, Any], str]] = {
    "parquet: not one": ("m.parquet", b"hello", {}, r"m\.parquet cannot be read"),
    "parquet: no rows": ("m.parquet", parquet(image_uri=pa.array([], "string")), {}, "has no row"),
    "parquet: no uri column": ("m.parquet", parquet(uri=["/a"], x=[1]), {}, "no column 'image_uri'; it has: uri, x"),
    "parquet: no such id": ("m.parquet", parquet(image_uri=["/a"]), {"id_column": "key"}, "no column 'key'"),
    "parquet: no such bytes": ("m.parquet", parquet(image_uri=["/a"]), {"bytes_column": "jpg"}, "no column 'jpg'"),
    "parquet: bytes, no id": ("m.parquet", parquet(image_bytes=[b"x"]), {}, "no column 'image_id'"),
    "parquet: float id": ("m.parquet", parquet(image_id=[1.0], image_uri=["/a"]), {}, "'image_id': .* not double"),
    "parquet: bool id": ("m.parquet", parquet(image_id=[True], image_uri=["/a"]), {}, "'image_id': .* not bool"),
    "parquet: binary id": ("m.parquet", parquet(image_id=[b"1"], image_uri=["/a"]), {}, "'image_id': .* not binary"),
    "parquet: null id": ("m.parquet", parquet(image_id=[1, None], image_uri=["/a", "/b"]), {}, "row 2: the id is null"),
    "parquet: empty id": ("m.parquet", parquet(image_id=["", "a"], image_uri=["/a", "/b"]), {}, "row 1: the id is"),
    "parquet: integer uri": ("m.parquet", parquet(image_uri=[1]), {}, "'image_uri': .* not int64"),
    "parquet: null uri": ("m.parquet", parquet(image_uri=["/a", None]), {}, "row 2: the image URI is null or empty"),
    "parquet: empty uri": ("m.parquet", parquet(image_uri=["/a", ""]), {}, "row 2: the image URI is null or empty"),
    "parquet: text as bytes": ("m.parquet", parquet(image_id=[1], image_bytes=["x"]), {}, "must be binary, not string"),
    "parquet: no root": ("m.parquet", parquet(image_uri=["/a", "b"]), {}, "row 2: .*'b'.* set image_root"),
    "parquet: out of root": ("m.parquet", parquet(image_uri=["a/../../b"]), {"image_root": "/r"}, "climbs out"),
    "csv: empty file": ("m.csv", b"", {}, "is empty"),
    "csv: header only": ("m.csv", b"image_uri\n", {}, "has no row"),
    "csv: no uri column": ("m.csv", b"image_id,b\n1,2\n", {}, "no column 'image_uri'; it has: image_id, b"),
    "csv: column twice": ("m.csv", b"image_uri,image_uri\n/a,/b\n", {}, "2 columns named 'image_uri'"),
    "csv: too few fields": ("m.csv", b"a,image_uri\n1,/a\n2\n", {}, "row 2: 1 fields instead of 2"),
    "csv: empty uri": ("m.csv", b"a,image_uri\n1,/a\n2,\n", {}, "row 2: the image URI is null or empty"),
    "csv: empty id": ("m.csv", b"image_id,image_uri\n1,/a\n,/b\n", {}, "row 2: the id is null or empty"),
    "csv: not UTF-8": ("m.csv", b"image_uri\n/\xff\n", {}, "UTF8"),
    "csv: no root": ("m.csv", b"image_uri\na\n", {}, "row 1: .* set image_root"),
    "csv: bytes": ("m.csv", b"image_uri,jpg\n/a,x\n", {"bytes_column": "jpg"}, "from Parquet only"),
    "jsonl: empty file": ("m.jsonl", b"\n", {}, "is empty"),
    "jsonl: not JSON": ("m.jsonl", b'{"image_uri": "/a"}\n{"image_uri"\n', {}, "line 2: not JSON"),
    "jsonl: not UTF-8": ("m.jsonl", b'{"image_uri": "\xff"}\n', {}, "line 1: not JSON: not UTF-8"),
    "jsonl: not an object": ("m.jsonl", b"[1]\n", {}, "line 1: a list, not an object"),
    "jsonl: no uri key": ("m.jsonl", b'{"uri": "/a"}\n', {}, "no column 'image_uri'; it has: uri"),
    "jsonl: uri missing later": ("m.jsonl", b'{"image_uri": "/a"}\n\n{}\n', {}, "line 3: the image URI is null"),
    "jsonl: uri a number": ("m.jsonl", b'{"image_uri": 1}\n', {}, "line 1: 'image_uri' must be a string, not int"),
    "jsonl: bool id": ("m.jsonl", b'{"image_id": true, "image_uri": "/a"}', {}, "line 1: .* not bool"),
    "jsonl: float id": ("m.jsonl", b'{"image_id": 1.0, "image_uri": "/a"}', {}, "line 1: .* not float"),
    "jsonl: id null": ("m.jsonl", b'{"image_id": null, "image_uri": "/a"}', {}, "line 1: the id is null"),
    "jsonl: id of 65 bits": (
        "m.jsonl",
        b'{"image_id": 9223372036854775808, "image_uri": "/"}',
        {},
        "line 1: .* 64 bits",
    ),
    "jsonl: two id types": (
        "m.jsonl",
        b'{"image_id": 1, "image_uri": "/a"}\n{"image_id": "2", "image_uri": "/b"}',
        {},
        "line 2: .* str here, int64 before",
    ),
    "jsonl: ids from line 2 on": (
        "m.jsonl",
        b'{"image_uri":"/a"}\n{"image_uri":"/b","image_id":1}',
        {},
        "line 2: it has",
    ),
    "jsonl: lone surrogate": ("m.jsonl", b'{"image_uri": "/a"}\n{"image_uri": "/\\ud800"}', {}, "line 2: .* Unicode"),
    "jsonl: carried types clash": (
        "m.jsonl",
        b'{"image_uri": "/a", "k": 1}\n{"image_uri": "/b", "k": "x"}',
        {"carry": ("k",)},
        r"'k' holds values that no one type can hold \(int, str\)",
    ),
    "jsonl: carried nowhere": ("m.jsonl", b'{"image_uri": "/a"}', {"carry": ("k",)}, "no column 'k'"),
    "coco: not JSON": ("m.json", b"{", {}, "is not JSON"),
    "coco: a list": ("m.json", b"[]", {}, "no list 'images'"),
    "coco: no images": ("m.json", b'{"images": []}', {}, "has no row"),
    "coco: no file name": ("m.json", b'{"images": [{"id": 1}]}', {}, "no column 'file_name'; it has: id"),
    "coco: second without id": (
        "m.json",
        b'{"images": [{"id": 1, "file_name": "/a"}, {"file_name": "/b"}]}',
        {},
        "image 2: the id is null",
    ),
    "carried column missing": ("m.csv", b"image_uri\n/a\n", {"carry": ("k",)}, "no column 'k'; it has: image_uri"),
    "carried column clashes": ("m.csv", b"image_uri,height\n/a,1\n", {"carry": ("height",)}, "'height' cannot be"),
    "carried twice": ("m.csv", b"image_uri,k\n/a,1\n", {"carry": ("k", "k")}, "named twice"),
    "unknown suffix": ("m.txt", b"", {}, "suffix does not tell"),
    "unknown format": ("m.txt", b"", {"format": "xml"}, "'xml' is unknown; there are: auto, parquet, csv"),
}


@pytest.mark.parametrize(
    ("name", "content", "fields", "message"), [pytest.param(*case, id=key) for key, case in BAD_MANIFESTS.items()]
)
def test_bad_manifests(
    tmp_path: Path, scratch: str, name: str, content: bytes, fields: dict[str, Any], message: str
) -> None:
    spec = ManifestSpec(write(tmp_path / name, content), **fields)
    with pytest.raises(ManifestError, match=message):
        open_manifest(spec, scratch)


class TestBadFolders:
    def test_what_is_refused(self, tmp_path: Path, scratch: str) -> None:
        folder = tmp_path / "folder"
        with pytest.raises(ManifestError, match="folder does not exist"):
            open_manifest(ManifestSpec(str(folder)), scratch)
        write(folder / "notes.txt", "")
        with pytest.raises(ManifestError, match="has no image"):
            open_manifest(ManifestSpec(str(folder)), scratch)
        with pytest.raises(ManifestError, match="holds no Parquet file"):
            open_manifest(ManifestSpec(str(folder), format="parquet"), scratch)
        write(folder / "b.jpg", b"x")
        with pytest.raises(ManifestError, match="no columns to carry"):
            open_manifest(ManifestSpec(str(folder), carry=("k",)), scratch)
        with pytest.raises(ManifestError, match="image_root has no meaning"):
            open_manifest(ManifestSpec(str(folder), image_root="/elsewhere"), scratch)

    @pytest.mark.parametrize("name", ["a.parquet", "c.parquet"])
    def test_images_and_parquet_need_a_format(self, tmp_path: Path, scratch: str, name: str) -> None:
        folder = tmp_path / "folder"
        write(folder / "b.jpg", b"x")
        write_parquet(folder / name, {"image_uri": ["/a"]})
        with pytest.raises(ManifestError, match="holds Parquet files and images"):
            open_manifest(ManifestSpec(str(folder)), scratch)
        assert read_all_ids(open_manifest(ManifestSpec(str(folder), format="parquet"), scratch)) == ["/a"]
        assert read_all_ids(open_manifest(ManifestSpec(str(folder), format="folder"), scratch)) == ["b.jpg"]

    def test_names_that_are_not_utf8(self, tmp_path: Path, scratch: str) -> None:
        folder = tmp_path / "folder"
        folder.mkdir()
        try:
            Path(os.fsdecode(os.fsencode(folder) + b"/\xff.jpg")).touch()
        except OSError:
            pytest.skip("this file system takes no such names")
        with pytest.raises(ManifestError, match="not UTF-8"):
            open_manifest(ManifestSpec(str(folder)), scratch)


def test_messages_hold_no_credentials(tmp_path: Path, scratch: str) -> None:
    content = parquet(image_id=[1], image_uri=["x"])
    path = write(tmp_path / "m.parquet", content)
    with pytest.raises(ManifestError) as raised:
        open_manifest(ManifestSpec(path, image_root="https://user:secret@host/images"), scratch)
    assert "secret" not in str(raised.value)
    with pytest.raises(ManifestError) as raised:
        open_manifest(ManifestSpec("http://127.0.0.1:9/m.csv?X-Amz-Signature=secret"), scratch)
    assert "secret" not in str(raised.value)


def test_manifests_are_small_and_picklable(tmp_path: Path, scratch: str) -> None:
    path = write_parquet(tmp_path / "m.parquet", {"image_uri": [f"/{i}" for i in range(1000)], "k": [1] * 1000})
    manifest = open_manifest(ManifestSpec(path, carry=("k",)), scratch)
    pickled = pickle.dumps(manifest)
    assert len(pickled) < 1000
    assert pickle.loads(pickled) == manifest  # noqa: S301
    error = pickle.loads(pickle.dumps(ManifestError("why")))  # noqa: S301
    assert isinstance(error, ManifestError)
    assert str(error) == "why"
