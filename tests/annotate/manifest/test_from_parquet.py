from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import dataset

from pipeline.annotate.config import ManifestConfig
from pipeline.annotate.manifest.open import open_manifest
from pipeline.annotate.manifest.rules import ManifestError, ReadUnit
from pipeline.annotate.manifest.units import read_statistics, surely_filled
from pipeline.annotate.pending.antijoin import DuplicateIdError, find_pending
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


class TestParquet:
    def test_units_are_the_row_groups_of_the_original_files(self, tmp_path: Path, scratch: Uri) -> None:
        folder = tmp_path / "manifest"
        b = write_parquet(folder / "b.parquet", {"image_id": [6, 7], "image_uri": ["/6", "/7"]})
        a = write_parquet(
            folder / "a.parquet",
            {"image_id": [5, 1, 4, 2, 3], "image_uri": ["/5", "/1", "/4", "/2", "/3"]},
            row_group_size=2,
        )
        write_parquet(folder / "c.parquet", {"image_id": pa.array([], pa.int64()), "image_uri": pa.array([], "string")})
        write(folder / "_SUCCESS", "")
        manifest = open_manifest(ManifestConfig(uri=str(folder)), scratch)
        assert manifest.units == (
            ReadUnit(Uri(a), 0, 2),
            ReadUnit(Uri(a), 1, 2),
            ReadUnit(Uri(a), 2, 1),
            ReadUnit(Uri(b), 0, 2),
        )
        assert manifest.num_rows == 7
        assert read_all_ids(manifest) == [5, 1, 4, 2, 3, 6, 7]
        assert [row["image_uri"] for row in read_all(manifest)] == ["/5", "/1", "/4", "/2", "/3", "/6", "/7"]
        assert not os.path.exists(scratch.path)

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
    def test_id_types(self, tmp_path: Path, scratch: Uri, id_type: pa.DataType, expected: pa.DataType) -> None:
        ids = pa.array([1, 2, 1]).cast(expected).cast(id_type)
        path = write_parquet(
            tmp_path / "m.parquet",
            {"image_id": ids, "image_uri": pa.array(["/a", "/b", "/c"], id_type if expected == pa.string() else None)},
        )
        manifest = open_manifest(ManifestConfig(uri=path), scratch)
        assert manifest.id_type == expected
        assert read_all_ids(manifest) == pa.array([1, 2, 1]).cast(expected).to_pylist()
        assert [row["image_uri"] for row in read_all(manifest)] == ["/a", "/b", "/c"]

    def test_carried_columns_keep_their_types(self, tmp_path: Path, scratch: Uri) -> None:
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
        manifest = open_manifest(ManifestConfig(uri=path, carry=carry), scratch)
        table = pa.table(columns)
        assert manifest.carried == pa.schema([table.schema.field(name) for name in carry])
        rows = list(manifest.read_rows(manifest.units[0], np.array([0, 1])))
        assert pa.concat_tables(rows).select(list(carry)).equals(table.select(list(carry)))

    def test_columns_of_other_names(self, tmp_path: Path, scratch: Uri) -> None:
        path = write_parquet(tmp_path / "m.parquet", {"key": pa.array([7], pa.int32()), "path": ["/7"]})
        manifest = open_manifest(ManifestConfig(uri=path, id_column="key", uri_column="path"), scratch)
        assert read_all(manifest) == [{"image_id": 7, "image_uri": "/7", "image_bytes": None}]

    def test_relative_uris_join_the_root_and_are_the_ids(self, tmp_path: Path, scratch: Uri) -> None:
        path = write_parquet(tmp_path / "m.parquet", {"image_uri": ["a/1.jpg", "s3://b/2.jpg", "/c/3.jpg"]})
        manifest = open_manifest(ManifestConfig(uri=path, image_root="s3://bucket/root/"), scratch)
        assert read_all_ids(manifest) == ["a/1.jpg", "s3://b/2.jpg", "/c/3.jpg"]
        rows = read_all(manifest)
        assert [row["image_id"] for row in rows] == ["a/1.jpg", "s3://b/2.jpg", "/c/3.jpg"]
        assert [row["image_uri"] for row in rows] == ["s3://bucket/root/a/1.jpg", "s3://b/2.jpg", "/c/3.jpg"]

    def test_a_relative_root_becomes_absolute(
        self, tmp_path: Path, scratch: Uri, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What the output holds must mean the same to whoever reads it, wherever that is started."""
        monkeypatch.chdir(tmp_path)
        path = write_parquet(tmp_path / "m.parquet", {"image_uri": ["a/1.jpg"]})
        manifest = open_manifest(ManifestConfig(uri=path, image_root="pictures"), scratch)
        assert [row["image_uri"] for row in read_all(manifest)] == [str(tmp_path / "pictures/a/1.jpg")]

    def test_bytes_only(self, tmp_path: Path, scratch: Uri) -> None:
        path = write_parquet(tmp_path / "m.parquet", {"image_id": [1, 2], "image_bytes": [b"one", b""]})
        manifest = open_manifest(ManifestConfig(uri=path), scratch)
        assert manifest.columns.bytes is not None
        assert read_all(manifest) == [
            {"image_id": 1, "image_uri": None, "image_bytes": b"one"},
            {"image_id": 2, "image_uri": None, "image_bytes": b""},
        ]

    def test_each_row_needs_bytes_or_a_uri(self, tmp_path: Path, scratch: Uri) -> None:
        columns = {
            "image_id": [1, 2, 3],
            "image_uri": ["label.jpg", None, "/3.jpg"],  # the first is relative without a root: a label
            "image_bytes": [b"one", b"two", None],
        }
        manifest = open_manifest(ManifestConfig(uri=write_parquet(tmp_path / "m.parquet", columns)), scratch)
        assert [tuple(row.values()) for row in read_all(manifest)] == [
            (1, "label.jpg", b"one"),
            (2, None, b"two"),
            (3, "/3.jpg", None),
        ]

    @pytest.mark.parametrize("statistics", [True, False])
    def test_rows_with_neither_are_refused(self, tmp_path: Path, scratch: Uri, statistics: bool) -> None:
        columns = {
            "image_id": [1, 2, 3, 4],
            "image_uri": ["/1", None, None, None],
            "image_bytes": [None, b"2", b"3", None],
        }
        path = write_parquet(tmp_path / "m.parquet", columns, write_statistics=statistics, row_group_size=3)
        with pytest.raises(ManifestError, match=r"m\.parquet, row group 1, row 1: the image URI is null"):
            open_manifest(ManifestConfig(uri=path), scratch)

    def test_without_statistics(self, tmp_path: Path, scratch: Uri) -> None:
        columns = {"image_id": ["a", "b", ""], "image_uri": ["/a", "/b", "/c"]}
        path = write_parquet(tmp_path / "m.parquet", columns, write_statistics=False)
        with pytest.raises(ManifestError, match="row group 0, row 3: the id is null or empty"):
            open_manifest(ManifestConfig(uri=path), scratch)

    def test_a_file_that_changes_underneath(self, tmp_path: Path, scratch: Uri) -> None:
        path = write_parquet(tmp_path / "m.parquet", {"image_uri": ["/a", "/b"]})
        manifest = open_manifest(ManifestConfig(uri=path), scratch)
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
    def test_files_that_differ(self, tmp_path: Path, scratch: Uri, columns: dict[str, Any], message: str) -> None:
        first = {"image_id": [1], "image_uri": ["/a"], "k": [1], "not used": [1.5]}
        write_parquet(tmp_path / "m" / "a.parquet", first)
        write_parquet(
            tmp_path / "m" / "b.parquet", {"k": [0], **columns} if message.startswith("column 'image") else columns
        )
        with pytest.raises(ManifestError, match=message) as raised:
            open_manifest(ManifestConfig(uri=str(tmp_path / "m"), carry=("k",)), scratch)
        assert "b.parquet" in str(raised.value)


IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def hugging_face(images: list[dict[str, Any] | None], name: str = "image", kind: pa.DataType = IMAGE) -> pa.Table:
    """Schema and metadata as `datasets.Dataset.to_parquet` (5.2) writes them for the features Image and ClassLabel."""
    features = {name: {"_type": "Image"}, "label": {"names": ["a", "b"], "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    columns = {name: pa.array(images, kind), "label": pa.array([0] * len(images), pa.int64())}
    return pa.table(columns).replace_schema_metadata(metadata)


def written(path: Path, table: pa.Table, **options: Any) -> ManifestConfig:
    pq.write_table(table, path)
    return ManifestConfig(uri=str(path), **options)


class TestHuggingFace:
    ROWS: ClassVar[list[dict[str, Any] | None]] = [
        {"bytes": b"one", "path": "one.jpg"},
        {"bytes": None, "path": "a/two.jpg"},
        {"bytes": b"", "path": "/three.jpg"},
    ]

    @pytest.mark.parametrize(
        ("kind", "row_group_size"),
        [
            (IMAGE, 9),
            (IMAGE, 1),
            (pa.struct([("path", pa.large_string()), ("bytes", pa.large_binary())]), 2),
            (pa.struct([("bytes", pa.binary_view()), ("path", pa.string_view())]), 9),
        ],
        ids=["datasets", "row groups", "large types", "views"],
    )
    @pytest.mark.parametrize("options", [{}, {"bytes_column": "image"}], ids=["found", "named"])
    def test_bytes_where_there_are_any_else_the_path(
        self, tmp_path: Path, scratch: Uri, kind: pa.DataType, options: dict[str, Any], row_group_size: int
    ) -> None:
        path = tmp_path / "train-00000-of-00001.parquet"
        pq.write_table(hugging_face(self.ROWS, kind=kind), path, row_group_size=row_group_size)
        config = ManifestConfig(uri=str(path), image_root="s3://bucket/root", carry=("label",), **options)
        manifest = open_manifest(config, scratch)
        assert read_all_ids(manifest) == ["one.jpg", "a/two.jpg", "/three.jpg"]
        assert [tuple(row.values()) for row in read_all(manifest)] == [
            ("one.jpg", "s3://bucket/root/one.jpg", b"one", 0),
            ("a/two.jpg", "s3://bucket/root/a/two.jpg", None, 0),
            ("/three.jpg", "/three.jpg", b"", 0),
        ]

    def test_embedded_ones_need_no_root(self, tmp_path: Path, scratch: Uri) -> None:
        table = hugging_face([{"bytes": b"one", "path": "one.jpg"}]).append_column("image_id", pa.array([7]))
        manifest = open_manifest(written(tmp_path / "m.parquet", table), scratch)
        assert read_all(manifest) == [{"image_id": 7, "image_uri": "one.jpg", "image_bytes": b"one"}]

    def test_without_paths(self, tmp_path: Path, scratch: Uri) -> None:
        """As of pictures that were made, and not read."""
        table = hugging_face([{"bytes": b"one", "path": None}]).append_column("key", pa.array(["k"]))
        config = written(tmp_path / "m.parquet", table)
        with pytest.raises(ManifestError, match=r"row group 0, row 1: the id is null .*set manifest\.id_column"):
            open_manifest(config, scratch)
        manifest = open_manifest(config.model_copy(update={"id_column": "key"}), scratch)
        assert read_all(manifest) == [{"image_id": "k", "image_uri": None, "image_bytes": b"one"}]

    def test_paths_that_occur_twice(self, tmp_path: Path, scratch: Uri) -> None:
        manifest = open_manifest(written(tmp_path / "m.parquet", hugging_face(self.ROWS[:1] * 2)), scratch)
        with pytest.raises(
            DuplicateIdError, match=r"'one\.jpg' 2 times \(first in .*row 1\).*column of ids \(id_column\)"
        ):
            find_pending(manifest, [])

    @pytest.mark.parametrize("image", [None, {"bytes": None, "path": None}, {"bytes": None, "path": ""}], ids=str)
    def test_rows_without_an_image(self, tmp_path: Path, scratch: Uri, image: dict[str, Any] | None) -> None:
        table = hugging_face([self.ROWS[0], image]).append_column("image_id", pa.array([1, 2]))
        with pytest.raises(ManifestError, match="row group 0, row 2: the image URI is null or empty"):
            open_manifest(written(tmp_path / "m.parquet", table), scratch)

    def test_two_columns_of_images(self, tmp_path: Path, scratch: Uri) -> None:
        table = hugging_face(self.ROWS[:1]).append_column("mask", pa.array([{"bytes": b"m", "path": "m.png"}], IMAGE))
        config = written(tmp_path / "m.parquet", table)
        with pytest.raises(ManifestError, match=r"2 columns of images \(image, mask\): set manifest\.bytes_column"):
            open_manifest(config, scratch)
        manifest = open_manifest(config.model_copy(update={"bytes_column": "mask"}), scratch)
        assert read_all(manifest) == [{"image_id": "m.png", "image_uri": "m.png", "image_bytes": b"m"}]

    def test_with_a_column_of_addresses(self, tmp_path: Path, scratch: Uri) -> None:
        table = hugging_face(self.ROWS[:1]).append_column("url", pa.array(["https://host/1.jpg"]))
        config = written(tmp_path / "m.parquet", table, bytes_column="image", uri_column="url")
        rows = read_all(open_manifest(config, scratch))
        assert rows == [{"image_id": "https://host/1.jpg", "image_uri": "https://host/1.jpg", "image_bytes": b"one"}]

    def test_columns_of_the_usual_names_come_first(self, tmp_path: Path, scratch: Uri) -> None:
        table = hugging_face(self.ROWS[:1]).append_column("image_uri", pa.array(["/1.jpg"]))
        rows = read_all(open_manifest(written(tmp_path / "m.parquet", table), scratch))
        assert rows == [{"image_id": "/1.jpg", "image_uri": "/1.jpg", "image_bytes": None}]

    def test_named_as_the_column_of_uris(self, tmp_path: Path, scratch: Uri) -> None:
        config = written(tmp_path / "m.parquet", hugging_face(self.ROWS), uri_column="image")
        with pytest.raises(ManifestError, match=r"'image': .*struct.*name it as manifest\.bytes_column"):
            open_manifest(config, scratch)

    def test_a_column_called_like_a_field(self, tmp_path: Path, scratch: Uri) -> None:
        table = hugging_face(self.ROWS).append_column("image.path", pa.array(["/1", "/2", "/3"]))
        with pytest.raises(ManifestError, match=r"2 columns named 'image\.path'"):
            open_manifest(written(tmp_path / "m.parquet", table), scratch)


class TestFoldersOfOthers:
    def test_what_all_readers_pass_over(self, tmp_path: Path, scratch: Uri, caplog: pytest.LogCaptureFixture) -> None:
        folder = tmp_path / "spark"
        names = ["part-0.parquet", "k=1/part-1.parquet", "_temporary/0/part-9.parquet", "_x.parquet", ".y.parquet"]
        names += ["k=1/_tmp/z.parquet", ".hidden/a.parquet", "x_y/b_.parquet"]
        for index, name in enumerate(names):
            write_parquet(folder / name, {"image_id": [index], "image_uri": [f"/{name}"]})
        read = dataset.dataset(folder, format="parquet").files  # with Arrow's default of `ignore_prefixes`
        expected = sorted(f"/{os.path.relpath(name, folder)}" for name in read)
        manifest = open_manifest(ManifestConfig(uri=str(folder)), scratch)
        assert sorted(row["image_uri"] for row in read_all(manifest)) == expected
        assert "'_temporary/0/part-9.parquet'" in caplog.text

    def test_leftovers_alone_are_nothing(self, tmp_path: Path, scratch: Uri) -> None:
        write_parquet(tmp_path / "spark" / "_temporary" / "a.parquet", {"image_id": [1], "image_uri": ["/a"]})
        with pytest.raises(ManifestError, match="holds no Parquet file"):
            open_manifest(ManifestConfig(uri=str(tmp_path / "spark"), format="parquet"), scratch)

    @pytest.mark.parametrize(
        ("kind", "mark", "form", "cure"),
        [
            ("Delta", "_delta_log/00000000000000000000.json", "parquet", "manifest.format is delta"),
            ("Delta", "_delta_log/00000000000000000010.checkpoint.parquet", "parquet", "manifest.format is delta"),
            ("Delta", "below/_delta_log/00000000000000000000.json", "auto", "manifest.format is delta"),
            ("Iceberg", "metadata/00000-0c3a.metadata.json", "auto", "manifest.format is iceberg"),
            ("Hudi", ".hoodie/hoodie.properties", "auto", "plain Parquet"),
            ("Hudi", ".hoodie/hoodie.properties", "parquet", "plain Parquet"),
        ],
    )
    def test_tables_are_refused_by_name(
        self, tmp_path: Path, scratch: Uri, kind: str, mark: str, form: str, cure: str
    ) -> None:
        write_parquet(tmp_path / "t" / "data" / "part-0.parquet", {"image_id": [1], "image_uri": ["/a"]})
        write(tmp_path / "t" / mark, b"{}")
        with pytest.raises(ManifestError, match=rf"/t is a {kind} table .*{cure}"):
            open_manifest(ManifestConfig.model_validate({"uri": str(tmp_path / "t"), "format": form}), scratch)

    def test_a_table_on_s3(self, s3: S3Server, scratch: Uri) -> None:
        for name in ("part-0.parquet", ".hoodie/x"):
            s3.put("bucket", f"hudi/{name}", parquet(image_id=[1], image_uri=["/a"]))
        with pytest.raises(ManifestError, match="is a Hudi table"):
            open_manifest(ManifestConfig(uri="s3://bucket/hudi"), scratch)


class TestStatistics:
    @settings(max_examples=60, deadline=None)
    @given(
        ids=st.lists(st.sampled_from(["", "a", None]), min_size=1, max_size=4),
        images=st.lists(st.sampled_from([b"", b"x", None]), min_size=1, max_size=4),
        rows=st.integers(1, 3),
        version=st.sampled_from(["1.0", "2.4", "2.6"]),
        statistics=st.booleans(),
    )
    def test_are_pyarrows(self, ids: list[str | None], images: list[bytes | None], rows: int, **options: Any) -> None:
        num = min(len(ids), len(images))
        columns = {"image_id": pa.array(ids[:num], pa.string()), "b": pa.array(images[:num], pa.binary())}
        columns["n"] = pa.array(range(num))
        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/m.parquet"
            version, written = options["version"], options["statistics"]
            pq.write_table(pa.table(columns), path, row_group_size=rows, version=version, write_statistics=written)
            found = read_statistics(Uri(path))
            metadata = pq.read_metadata(path)
        assert len(found) == metadata.num_row_groups
        for index, known in enumerate(found):
            for at in range(3):
                column = metadata.row_group(index).column(at)
                there = column.statistics
                filled = there is not None and there.null_count == 0
                ours = known.get(column.path_in_schema)
                assert surely_filled(ours, empty_counts=True) == filled
                not_empty = filled and there.has_min_max and there.min not in ("", b"")
                assert surely_filled(ours, empty_counts=False) == not_empty


BAD_MANIFESTS: BadManifests = {
    "not one": ("m.parquet", b"hello", {}, r"m\.parquet cannot be read"),
    "no rows": ("m.parquet", parquet(image_uri=pa.array([], "string")), {}, "has no row"),
    "no uri column": ("m.parquet", parquet(uri=["/a"], x=[1]), {}, "no column 'image_uri'; it has: uri, x"),
    "no such id": ("m.parquet", parquet(image_uri=["/a"]), {"id_column": "key"}, "no column 'key'"),
    "no such bytes": ("m.parquet", parquet(image_uri=["/a"]), {"bytes_column": "jpg"}, "no column 'jpg'"),
    "bytes, no id": ("m.parquet", parquet(image_bytes=[b"x"]), {}, "no column 'image_id'"),
    "float id": ("m.parquet", parquet(image_id=[1.0], image_uri=["/a"]), {}, "'image_id': .* not double"),
    "bool id": ("m.parquet", parquet(image_id=[True], image_uri=["/a"]), {}, "'image_id': .* not bool"),
    "binary id": ("m.parquet", parquet(image_id=[b"1"], image_uri=["/a"]), {}, "'image_id': .* not binary"),
    "null id": ("m.parquet", parquet(image_id=[1, None], image_uri=["/a", "/b"]), {}, "row 2: the id is null"),
    "empty id": ("m.parquet", parquet(image_id=["", "a"], image_uri=["/a", "/b"]), {}, "row 1: the id is"),
    "integer uri": ("m.parquet", parquet(image_uri=[1]), {}, "'image_uri': .* not int64"),
    "null uri": ("m.parquet", parquet(image_uri=["/a", None]), {}, "row 2: the image URI is null or empty"),
    "empty uri": ("m.parquet", parquet(image_uri=["/a", ""]), {}, "row 2: the image URI is null or empty"),
    "text as bytes": ("m.parquet", parquet(image_id=[1], image_bytes=["x"]), {}, "must be binary, not string"),
    "no root": ("m.parquet", parquet(image_uri=["/a", "b"]), {}, "row 2: .*'b'.* set image_root"),
    "out of root": ("m.parquet", parquet(image_uri=["a/../../b"]), {"image_root": "/r"}, "climbs out"),
}


@each_of(BAD_MANIFESTS)
def test_bad_manifests(tmp_path: Path, case: Any) -> None:
    check_refused(tmp_path, case)
