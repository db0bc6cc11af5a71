from __future__ import annotations

import json
import pickle
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.annotate.config import ManifestConfig
from pipeline.annotate.manifest.open import Manifest, open_manifest
from pipeline.annotate.manifest.rules import ManifestError
from pipeline.storage.uris import Uri
from testing.s3_server import S3Server
from tests.annotate.manifest.manifest_cases import (
    BadManifests,
    check_refused,
    each_of,
    parquet,
    read_all,
    read_all_ids,
    write,
    write_parquet,
)


class TestReadRows:
    @pytest.fixture
    def manifest(self, tmp_path: Path, scratch: Uri) -> Manifest:
        columns = {"image_id": np.arange(1000), "image_bytes": [b"%d" % i for i in range(1000)]}
        return open_manifest(ManifestConfig(uri=write_parquet(tmp_path / "m.parquet", columns)), scratch)

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

    def test_memory_is_bounded_within_a_row_group(self, tmp_path: Path, scratch: Uri) -> None:
        one = np.random.default_rng(0).bytes(1 << 18)
        path = write_parquet(
            tmp_path / "m.parquet",
            {"image_id": np.arange(200), "image_bytes": [one] * 200},
            use_dictionary=False,
            write_batch_size=4,  # a page is not cut within such a batch
            data_page_size=1 << 20,
        )
        manifest = open_manifest(ManifestConfig(uri=path), scratch)
        before, peak = pa.total_allocated_bytes(), 0
        for _ in manifest.read_rows(manifest.units[0], np.ones(200, bool), batch_rows=4):
            peak = max(peak, pa.total_allocated_bytes() - before)
        assert peak < 16 << 20  # of 50 MB


class TestS3:
    def test_every_file_format(self, s3: S3Server, tmp_path: Path) -> None:
        parquet = Path(write_parquet(tmp_path / "m.parquet", {"image_id": [1, 2], "image_uri": ["a?#.jpg", "b.jpg"]}))
        files = {
            "t/m.csv": b"image_id,image_uri\n1,a?#.jpg\n2,b.jpg\n",
            "t/m.tsv": b"image_id\timage_uri\n1\ta?#.jpg\n2\tb.jpg\n",
            "t/m.jsonl": b'{"image_id":1,"image_uri":"a?#.jpg"}\n{"image_id":2,"image_uri":"b.jpg"}\n',
            "t/m.json": b'{"images":[{"id":1,"file_name":"a?#.jpg"},{"id":2,"file_name":"b.jpg"}]}',
            "t/m.parquet": parquet.read_bytes(),
            "t/folder/part-0.parquet": parquet.read_bytes(),
        }
        for key, content in files.items():
            s3.put("bucket", key, content)
        for name in ("m.csv", "m.tsv", "m.jsonl", "m.json", "m.parquet", "folder"):
            scratch = Uri(f"s3://bucket/t/scratch-{name}")
            manifest = open_manifest(
                ManifestConfig(uri=f"s3://bucket/t/{name}", image_root="s3://bucket/images"), scratch
            )
            manifest = pickle.loads(pickle.dumps(manifest))  # noqa: S301
            assert read_all_ids(manifest) == [1, 2], name
            uris = [row["image_uri"] for row in read_all(manifest)]
            assert uris == ["s3://bucket/images/a?#.jpg", "s3://bucket/images/b.jpg"], name
            assert all(unit.file.is_below(Uri("s3://bucket/t")) for unit in manifest.units)

    def test_what_is_not_there(self, s3: S3Server) -> None:
        with pytest.raises(ManifestError, match=r"s3://bucket/none\.csv does not exist"):
            open_manifest(ManifestConfig(uri="s3://bucket/none.csv"), Uri("s3://bucket/scratch"))
        with pytest.raises(ManifestError, match=r"NoSuchBucket|does not exist"):
            open_manifest(ManifestConfig(uri="s3://no-such-bucket/x", format="folder"), Uri("s3://bucket/scratch"))


BAD_MANIFESTS: BadManifests = {
    "carried column missing": ("m.csv", b"image_uri\n/a\n", {"carry": ("k",)}, "no column 'k'; it has: image_uri"),
    "carried column clashes": ("m.csv", b"image_uri,height\n/a,1\n", {"carry": ("height",)}, "'height' cannot be"),
    "unknown suffix": (
        "m.xlsx",
        b"",
        {},
        r"suffix does not tell .*parquet \(\.parquet \.pq\), .* tsv \(\.tsv\), list \(\.txt\), jsonl .* folder",
    ),
    "archive": ("train.zip", b"", {}, "only tar shards are read: unpack it .*image_bytes"),
    "picture": ("a.JPG", b"", {}, "a picture is no manifest: name its folder"),
    "file as folder": ("m.parquet", b"", {"format": "folder"}, "is a file, and .*set manifest.format: auto"),
}


@each_of(BAD_MANIFESTS)
def test_bad_manifests(tmp_path: Path, case: Any) -> None:
    check_refused(tmp_path, case)


@pytest.mark.parametrize("kind", ["csv", "tsv", "list", "jsonl", "coco"])
def test_a_folder_where_a_file_is_wanted(tmp_path: Path, scratch: Uri, kind: str) -> None:
    with pytest.raises(ManifestError, match=rf"is a folder, and manifest\.format is {kind}: .*auto"):
        open_manifest(ManifestConfig.model_validate({"uri": str(tmp_path), "format": kind}), scratch)


PRESIGNED = "https://host/a.jpg?X-Amz-Signature=secret"


class TestUrisAsIds:
    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("m.csv", f"image_uri\n/b.jpg\n{PRESIGNED}\n".encode()),
            (
                "m.jsonl",
                json.dumps({"image_uri": "/b.jpg"}).encode() + b"\n" + json.dumps({"image_uri": PRESIGNED}).encode(),
            ),
            ("m.parquet", parquet(image_uri=["/b.jpg", PRESIGNED])),
            ("m.parquet", parquet(image_uri=["/b.jpg", PRESIGNED], image_bytes=[None, b"x"])),
            ("m.parquet", parquet(image_uri=["/b.jpg", PRESIGNED], image_bytes=[b"x", b"x"])),
        ],
        ids=["csv", "jsonl", "parquet", "parquet: some bytes", "parquet: all bytes"],
    )
    def test_secrets_do_not_become_ids(self, tmp_path: Path, scratch: Uri, name: str, content: bytes) -> None:
        path = write(tmp_path / name, content)
        with pytest.raises(
            ManifestError, match=r"(row 2|line 2|line 3): 'https://host/a\.jpg' .*give the manifest an id column"
        ) as raised:
            open_manifest(ManifestConfig(uri=path), scratch)
        assert "Signature" not in str(raised.value)

    def test_with_ids_they_are_read_as_they_are(self, tmp_path: Path, scratch: Uri) -> None:
        lines = f"image_id,image_uri\n1,{PRESIGNED}\n"
        manifest = open_manifest(ManifestConfig(uri=write(tmp_path / "m.csv", lines)), scratch)
        assert read_all(manifest) == [{"image_id": 1, "image_uri": PRESIGNED, "image_bytes": None}]
        path = write_parquet(tmp_path / "m.parquet", {"image_id": [1], "image_uri": [PRESIGNED]})
        assert read_all(open_manifest(ManifestConfig(uri=path), scratch)) == read_all(manifest)


def test_messages_hold_no_credentials(tmp_path: Path, scratch: Uri) -> None:
    content = parquet(image_id=[1], image_uri=["x"])
    path = write(tmp_path / "m.parquet", content)
    with pytest.raises(ValueError, match="image_root") as refused:
        ManifestConfig(uri=path, image_root="https://user:secret@host/images")
    assert "secret" not in str(refused.value)
    with pytest.raises(ManifestError) as raised:
        open_manifest(ManifestConfig(uri="http://127.0.0.1:9/m.csv?X-Amz-Signature=secret"), scratch)
    assert "secret" not in str(raised.value)


def test_manifests_are_small_and_picklable(tmp_path: Path, scratch: Uri) -> None:
    path = write_parquet(tmp_path / "m.parquet", {"image_uri": [f"/{i}" for i in range(1000)], "k": [1] * 1000})
    manifest = open_manifest(ManifestConfig(uri=path, carry=("k",)), scratch)
    pickled = pickle.dumps(manifest)
    assert len(pickled) < 1000
    assert pickle.loads(pickled) == manifest  # noqa: S301
    error = pickle.loads(pickle.dumps(ManifestError("why")))  # noqa: S301
    assert isinstance(error, ManifestError)
    assert str(error) == "why"


SIDES: list[tuple[Any, int]] = [(480, 480), (None, 0), (0, 0), (-3, 0), (1, 1), (2**31 - 1, 2**31 - 1), (2**31, 0)]
COLUMNS_OF_SIDES: dict[str, tuple[pa.Array, list[int]]] = {
    "int64": (pa.array([side for side, _ in SIDES], pa.int64()), [length for _, length in SIDES]),
    "uint64": (pa.array([7, 2**64 - 1], pa.uint64()), [7, 0]),
    "int8": (pa.array([7, -7], pa.int8()), [7, 0]),
    "float, as pandas has integers with gaps": (
        pa.array([480.0, None, 0.5, float("nan"), float("inf")]),
        [480, *[0] * 4],
    ),
    "text": (pa.array(["480", "480.0", " 1", "1e3", "", None, "-2", "x", "9" * 12]), [480, 480, *[0] * 7]),
    "text view": (pa.array(["480", "x"], pa.string_view()), [480, 0]),
    "decimal": (pa.array([Decimal("480"), Decimal("1.5")]), [480, 0]),
    "dictionary": (pa.array([480, None, 480]).dictionary_encode(), [480, 0, 480]),
    "lists": (pa.array([[480], None]), [0, 0]),
    "structs": (pa.array([{"height": 480}]), [0]),
    "bytes": (pa.array([b"480", b"\xff"]), [0, 0]),
    "nothing": (pa.nulls(2), [0, 0]),
    "times": (pa.array([datetime(2026, 1, 1)]), [0]),
}


class TestSizes:
    """A hint in the manifest: taken where it is one, and passed over, whatever it is."""

    def check(self, uri: str, scratch: Uri, heights: list[int], widths: list[int], **fields: Any) -> None:
        manifest = open_manifest(ManifestConfig(uri=uri, **fields), scratch)
        some = np.arange(manifest.units[0].num_rows)[::2]
        plain = pa.concat_tables(manifest.read_rows(manifest.units[0], some, 2))
        rows = pa.concat_tables(manifest.read_rows(manifest.units[0], some, 2, with_sizes=True))
        assert rows.column_names == [*plain.column_names, "height", "width"]
        assert rows.drop_columns(["height", "width"]).equals(plain)
        assert (rows["height"].to_pylist(), rows["width"].to_pylist()) == (heights[::2], widths[::2])
        expected = np.array([heights, widths], np.int64).T
        np.testing.assert_array_equal(manifest.read_sizes(manifest.units[0]), expected)

    @pytest.mark.parametrize("kind", COLUMNS_OF_SIDES)
    def test_columns_of_parquet(self, tmp_path: Path, scratch: Uri, kind: str) -> None:
        values, lengths = COLUMNS_OF_SIDES[kind]
        columns = {"image_id": np.arange(len(values)), "image_uri": ["/a"] * len(values), "height": values}
        width = pa.array(range(1, len(values) + 1), pa.int16())
        path = write_parquet(tmp_path / "m.parquet", {**columns, "width": width})
        self.check(path, scratch, lengths, width.to_pylist())

    def test_files_that_have_none_beside_others_that_do(self, tmp_path: Path, scratch: Uri) -> None:
        write_parquet(tmp_path / "m/a.parquet", {"image_uri": ["/a"]})
        write_parquet(tmp_path / "m/b.parquet", {"image_uri": ["/b"], "height": [3]})
        write_parquet(tmp_path / "m/c.parquet", {"image_uri": ["/c"], "height": ["3"], "width": [4.0]})
        manifest = open_manifest(ManifestConfig(uri=str(tmp_path / "m")), scratch)
        assert [manifest.read_sizes(unit).tolist() for unit in manifest.units] == [[[0, 0]], [[0, 0]], [[3, 4]]]
        for unit in manifest.units:
            assert len(next(manifest.read_rows(unit, np.array([0]), with_sizes=True))) == 1

    @pytest.mark.parametrize(("suffix", "delimiter"), [("csv", ","), ("tsv", "\t")])
    def test_text(self, tmp_path: Path, scratch: Uri, suffix: str, delimiter: str) -> None:
        lines = ["width,image_uri,height", "640,/a,480", ",/b,", "x,/c,-1", "640.0,/d,427"]
        path = write(tmp_path / f"m.{suffix}", "\n".join(lines).replace(",", delimiter))
        self.check(path, scratch, [480, 0, 0, 427], [640, 0, 0, 640])

    def test_text_with_a_column_twice(self, tmp_path: Path, scratch: Uri) -> None:
        self.check(write(tmp_path / "m.csv", "width,image_uri,height,width\n1,/a,2,3\n"), scratch, [0], [0])

    def test_text_whose_ids_are_called_so(self, tmp_path: Path, scratch: Uri) -> None:
        path = write(tmp_path / "m.csv", "width,image_uri,height\n1,/a,2\n")
        self.check(path, scratch, [2], [1], id_column="width")

    def test_json_lines(self, tmp_path: Path, scratch: Uri) -> None:
        sizes: list[tuple[Any, Any]] = [(480, 640), (None, 640), ("480", True), (10**400, [1]), (427.0, float("nan"))]
        records: list[dict[str, Any]] = [
            {"image_uri": f"/{i}", "height": h, "width": w} for i, (h, w) in enumerate(sizes)
        ]
        path = write(tmp_path / "m.jsonl", "\n".join(map(json.dumps, [*records, {"image_uri": "/x"}])))
        self.check(path, scratch, [480, 0, 0, 0, 427, 0], [640, 640, 1, 0, 0, 0])

    def test_coco(self, tmp_path: Path, scratch: Uri) -> None:
        images = [{"id": i, "file_name": f"/{i}.jpg", "height": 480, "width": 640 + i} for i in range(3)]
        path = write(tmp_path / "m.json", json.dumps({"images": images, "annotations": []}))
        self.check(path, scratch, [480] * 3, [640, 641, 642])

    def test_lists_and_folders_say_nothing(self, tmp_path: Path, scratch: Uri) -> None:
        self.check(write(tmp_path / "m.txt", "/a\n/b\n"), scratch, [0, 0], [0, 0])
        write(tmp_path / "pictures/a.jpg", b"")
        self.check(str(tmp_path / "pictures"), scratch, [0], [0])
