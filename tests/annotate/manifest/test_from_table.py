"""Tables as manifests, compared with what their own libraries read."""

from __future__ import annotations

import json
import struct
import uuid
from base64 import b85encode
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, QueryBuilder, write_deltalake
from pyiceberg.catalog import load_catalog
from pyroaring import BitMap

from pipeline.annotate.config import ManifestConfig
from pipeline.annotate.manifest.open import Manifest, open_manifest
from pipeline.annotate.manifest.rules import ManifestError
from pipeline.lake.base import TableError
from pipeline.storage.uris import Uri
from testing.s3_server import S3Server
from tests.annotate.manifest.manifest_cases import read_all

# base64's alphabet of base 85, and the one of ZeroMQ that Delta has.
_BASE85 = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;<=>?@^_`{|}~"
_Z85 = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"


def rows_of(ids: range, **more: Any) -> pa.Table:
    uris, cameras = [f"/images/{i}.jpg" for i in ids], ["ab"[i % 2] for i in ids]
    others = {name: [value] * len(ids) for name, value in more.items()}
    return pa.table({"image_id": list(ids), "image_uri": uris, "camera": cameras, **others})


def opened(uri: str, scratch: Uri, **settings: Any) -> Manifest:
    return open_manifest(ManifestConfig(uri=uri, carry=("camera",), **settings), scratch)


def found(manifest: Manifest) -> list[tuple[int, str, str]]:
    return sorted((row["image_id"], row["image_uri"], row["camera"]) for row in read_all(manifest))


def is_copied(manifest: Manifest, scratch: Uri) -> bool:
    return all(unit.file.is_below(scratch) for unit in manifest.units)


class TestDelta:
    def truth(self, path: str, version: int | None = None) -> list[tuple[int, str, str]]:
        query = QueryBuilder().register("t", DeltaTable(path, version=version))
        rows = pa.table(query.execute("select image_id, image_uri, camera from t").read_all())
        return sorted(tuple(row.values()) for row in rows.to_pylist())

    def test_removed_rows_stay_removed(self, tmp_path: Path, scratch: Uri) -> None:
        path = str(tmp_path / "table")
        write_deltalake(path, rows_of(range(50)))
        write_deltalake(path, rows_of(range(50, 80)), mode="append")
        DeltaTable(path).delete("image_id >= 10 and image_id < 60")
        assert len(pq.read_table(path, columns=["image_id"]).to_pylist()) > 30, "the folder has rows that were removed"
        manifest = opened(path, scratch)
        assert found(manifest) == self.truth(path)
        assert manifest.num_rows == 30
        assert manifest.version == str(DeltaTable(path).version())
        assert not is_copied(manifest, scratch)

    def test_a_version_is_kept(self, tmp_path: Path, scratch: Uri) -> None:
        path = str(tmp_path / "table")
        write_deltalake(path, rows_of(range(50)))
        manifest = opened(path, scratch)
        DeltaTable(path).delete("image_id < 20")
        assert found(manifest) == self.truth(path, 0)
        assert opened(path, scratch).num_rows == 30

    @pytest.mark.parametrize("change", ["partition", "older files lack a column"])
    def test_what_files_alone_do_not_tell(self, change: str, tmp_path: Path, scratch: Uri) -> None:
        path = str(tmp_path / "table")
        if change == "partition":
            write_deltalake(path, rows_of(range(50)), partition_by=["camera"])
        else:
            write_deltalake(path, rows_of(range(50)).drop_columns(["camera"]))
            write_deltalake(path, rows_of(range(50, 80)), mode="append", schema_mode="merge")
        manifest = opened(path, scratch, format="delta")
        assert set(found(manifest)) == set(self.truth(path))
        assert is_copied(manifest, scratch)

    def test_rows_removed_by_a_deletion_vector(self, tmp_path: Path, scratch: Uri) -> None:
        """As Spark writes them, which deltalake does not: rows 3 and 7, in the log itself."""
        path = tmp_path / "table"
        write_deltalake(str(path), rows_of(range(10)))
        log = path / "_delta_log" / f"{0:020}.json"
        add = next(json.loads(line)["add"] for line in log.read_text().splitlines() if '"add"' in line)
        bitmap = struct.pack("<iqi", 1681511377, 1, 0) + BitMap([3, 7]).serialize()
        bitmap += bytes(-len(bitmap) % 4)
        text = b85encode(bitmap).translate(bytes.maketrans(_BASE85, _Z85)).decode()
        vector = {"storageType": "i", "pathOrInlineDv": text, "sizeInBytes": len(bitmap), "cardinality": 2}
        features = {"readerFeatures": ["deletionVectors"], "writerFeatures": ["deletionVectors"]}
        actions = [
            {"protocol": {"minReaderVersion": 3, "minWriterVersion": 7, **features}},
            {"remove": {"path": add["path"], "dataChange": True, "deletionTimestamp": 0}},
            {"add": {**add, "deletionVector": vector}},
        ]
        (path / "_delta_log" / f"{1:020}.json").write_text("\n".join(map(json.dumps, actions)))
        manifest = opened(str(path), scratch)
        assert [row[0] for row in found(manifest)] == [0, 1, 2, 4, 5, 6, 8, 9]

    def test_on_s3(self, s3: S3Server, scratch: Uri) -> None:
        uri = f"s3://bucket/{uuid.uuid4().hex}"
        options = {"AWS_ENDPOINT_URL": s3.endpoint, "AWS_ALLOW_HTTP": "true"}
        write_deltalake(uri, rows_of(range(20)), storage_options=options)
        DeltaTable(uri, storage_options=options).delete("image_id < 5")
        assert [row[0] for row in found(opened(uri, scratch))] == list(range(5, 20))

    def test_no_table(self, tmp_path: Path, scratch: Uri) -> None:
        with pytest.raises(ManifestError, match="is no Delta table: it has no log"):
            opened(str(tmp_path), scratch, format="delta")

    def test_nothing_left(self, tmp_path: Path, scratch: Uri) -> None:
        path = str(tmp_path / "table")
        write_deltalake(path, rows_of(range(5)))
        DeltaTable(path).delete()
        with pytest.raises(ManifestError, match="has no row"):
            opened(path, scratch)


@pytest.fixture
def catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    settings = {"type": "sql", "uri": f"sqlite:///{tmp_path}/catalog.db", "warehouse": f"file://{tmp_path}/warehouse"}
    for key, value in settings.items():
        monkeypatch.setenv(f"PYICEBERG_CATALOG__NIGHTLY__{key.upper()}", value)
    made = load_catalog("nightly", **settings)
    made.create_namespace("vision")
    return made


class TestIceberg:
    def truth(self, table: Any, snapshot_id: int | None = None) -> list[tuple[int, str, str]]:
        columns = ("image_id", "image_uri", "camera")
        rows = table.scan(snapshot_id=snapshot_id).to_arrow().select(columns)
        return sorted(tuple(row.values()) for row in rows.to_pylist())

    def test_removed_rows_stay_removed(self, catalog: Any, scratch: Uri) -> None:
        table = catalog.create_table("vision.images", rows_of(range(1)).schema)
        table.append(rows_of(range(50)))
        table.append(rows_of(range(50, 80)))
        table.delete("image_id >= 10 and image_id < 60")
        manifest = opened("iceberg://nightly/vision.images", scratch)
        assert found(manifest) == self.truth(table)
        assert manifest.num_rows == 30
        assert manifest.version == str(table.current_snapshot().snapshot_id)
        assert not is_copied(manifest, scratch)
        table.delete("image_id < 5")
        assert found(manifest) == self.truth(table, int(manifest.version))
        by_file = opened(table.metadata_location.removeprefix("file://"), scratch)
        assert found(by_file) == self.truth(table)

    def test_a_column_was_renamed(self, catalog: Any, scratch: Uri) -> None:
        """By name, the file would give the column that has the name now the values of the one that had it."""
        table = catalog.create_table("vision.images", rows_of(range(1), other="x").schema)
        table.append(rows_of(range(50), other="x"))
        for name, new in (("camera", "old"), ("other", "camera")):
            with table.update_schema() as update:
                update.rename_column(name, new)
        manifest = opened("iceberg://nightly/vision.images", scratch)
        assert {row["camera"] for row in read_all(manifest)} == {"x"}
        assert found(manifest) == self.truth(table)
        assert is_copied(manifest, scratch)

    def test_no_such_table(self, catalog: Any, scratch: Uri) -> None:
        with pytest.raises(TableError, match=r"iceberg://nightly/vision\.images: there is no such Iceberg table"):
            opened("iceberg://nightly/vision.images", scratch)

    def test_a_folder_does_not_tell_its_current_metadata(self, catalog: Any, scratch: Uri, tmp_path: Path) -> None:
        catalog.create_table("vision.images", rows_of(range(1)).schema).append(rows_of(range(5)))
        with pytest.raises(ManifestError, match=r"is a Iceberg table .* name iceberg://CATALOG/NAMESPACE\.TABLE"):
            opened(str(tmp_path / "warehouse" / "vision" / "images"), scratch)
