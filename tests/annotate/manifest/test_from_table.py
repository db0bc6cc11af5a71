"""Tables as manifests, compared with what their own libraries read."""

from __future__ import annotations

import json
import struct
import uuid
from base64 import b85encode
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, QueryBuilder, write_deltalake
from pyiceberg.catalog import load_catalog
from pyiceberg.manifest import DataFile, DataFileContent, FileFormat, ManifestContent, ManifestWriterV2
from pyiceberg.typedef import Record
from pyiceberg.types import LongType
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


def remove_by_vector(path: Path, positions: list[int]) -> None:
    """Rows of the table's first file, in the log itself, as Spark does it, which deltalake does not."""
    log = path / "_delta_log" / f"{0:020}.json"
    add = next(json.loads(line)["add"] for line in log.read_text().splitlines() if '"add"' in line)
    bitmap = struct.pack("<iqi", 1681511377, 1, 0) + BitMap(positions).serialize()
    bitmap += bytes(-len(bitmap) % 4)
    text = b85encode(bitmap).translate(bytes.maketrans(_BASE85, _Z85)).decode()
    vector = {"storageType": "i", "pathOrInlineDv": text, "sizeInBytes": len(bitmap), "cardinality": len(positions)}
    actions = [
        protocol("deletionVectors"),
        {"remove": {"path": add["path"], "dataChange": True, "deletionTimestamp": 0}},
        {"add": {**add, "deletionVector": vector}},
    ]
    version = DeltaTable(path).version() + 1
    (path / "_delta_log" / f"{version:020}.json").write_text("\n".join(map(json.dumps, actions)))


def protocol(feature: str) -> dict[str, Any]:
    """Of Delta, as an action of its log."""
    features = {"readerFeatures": [feature], "writerFeatures": [feature]}
    return {"protocol": {"minReaderVersion": 3, "minWriterVersion": 7, **features}}


def remove_by_file(table: Any, rows: pa.Table, content: DataFileContent, columns: list[int] | None = None) -> None:
    """Rows of an Iceberg table by a delete file, which pyiceberg itself does not write."""
    location = f"{table.location()}/{uuid.uuid4().hex}-deletes.parquet"
    path = Path(location.removeprefix("file://"))
    pq.write_table(rows, path)
    file = DataFile.from_args(
        content=content,
        file_path=location,
        file_format=FileFormat.PARQUET,
        partition=Record(),
        record_count=rows.num_rows,
        file_size_in_bytes=path.stat().st_size,
        equality_ids=columns,
        spec_id=0,
    )
    with (
        mock.patch.object(ManifestWriterV2, "content", return_value=ManifestContent.DELETES),
        table.transaction() as transaction,
        transaction.update_snapshot().fast_append() as snapshot,
    ):
        snapshot.append_data_file(file)


def test_an_output_among_the_files_of_a_table_is_refused(tmp_path: Path, scratch: Uri) -> None:
    """Delta's vacuum removes every file that its log does not name."""
    write_deltalake(tmp_path / "table", rows_of(range(3)))
    config = ManifestConfig(uri=str(tmp_path / "table"), carry=("camera",))
    for output in (tmp_path / "table", tmp_path / "table" / "labels"):
        with pytest.raises(ManifestError, match="lies in the table"):
            open_manifest(config, scratch, output_uri=Uri(str(output)))
    assert len(found(open_manifest(config, scratch, output_uri=Uri(str(tmp_path / "labels"))))) == 3


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
        write_deltalake(str(tmp_path / "table"), rows_of(range(10)))
        remove_by_vector(tmp_path / "table", [3, 7])
        manifest = opened(str(tmp_path / "table"), scratch)
        assert [row[0] for row in found(manifest)] == [0, 1, 2, 4, 5, 6, 8, 9]

    def test_partitions_older_columns_and_a_deletion_vector(self, tmp_path: Path, scratch: Uri) -> None:
        path = str(tmp_path / "table")
        write_deltalake(path, rows_of(range(1, 21, 2)), partition_by=["camera"])  # one file, of camera b
        write_deltalake(path, rows_of(range(30, 40), night=7), mode="append", schema_mode="merge")
        remove_by_vector(tmp_path / "table", [3])
        manifest = open_manifest(ManifestConfig(uri=path, carry=("camera", "night")), scratch)
        rows = sorted((row["image_id"], row["camera"], row["night"]) for row in read_all(manifest))
        old = [(i, "b", None) for i in range(1, 21, 2) if i != 7]
        assert rows == old + [(i, "ab"[i % 2], 7) for i in range(30, 40)]

    def test_columns_under_other_names(self, tmp_path: Path, scratch: Uri) -> None:
        """The log says what files call them (column mapping)."""
        path = tmp_path / "table"
        write_deltalake(str(path), rows_of(range(10)).rename_columns(["c1", "camera", "image_uri"]))
        log = path / "_delta_log" / f"{0:020}.json"
        actions = [json.loads(line) for line in log.read_text().splitlines()]
        for action in actions:
            if "metaData" in action:
                schema = json.loads(action["metaData"]["schemaString"])
                for number, name in enumerate(("image_id", "image_uri", "camera")):
                    field = schema["fields"][number]
                    named = {"delta.columnMapping.id": number + 1, "delta.columnMapping.physicalName": field["name"]}
                    schema["fields"][number] = {**field, "name": name, "metadata": named}
                mapping = {"delta.columnMapping.mode": "name", "delta.columnMapping.maxColumnId": "3"}
                action["metaData"].update(schemaString=json.dumps(schema), configuration=mapping)
            if "protocol" in action:
                action.update(protocol("columnMapping"))
        log.write_text("\n".join(map(json.dumps, actions)))
        manifest = opened(str(path), scratch)
        assert found(manifest) == [(i, f"/images/{i}.jpg", "ab"[i % 2]) for i in range(10)]

    @pytest.mark.parametrize("feature", ["catalogManaged", "somethingNew"])
    def test_what_deltalake_does_not_know(self, feature: str, tmp_path: Path, scratch: Uri) -> None:
        path = tmp_path / "table"
        write_deltalake(str(path), rows_of(range(10)))
        (path / "_delta_log" / f"{1:020}.json").write_text(json.dumps(protocol(feature)))
        named = "catalog-managed" if feature == "catalogManaged" else feature
        with pytest.raises(TableError, match=f"needs what deltalake cannot do: .*{named}.* DROP FEATURE"):
            opened(str(path), scratch)

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

    def test_files_that_say_no_ids(self, catalog: Any, scratch: Uri, tmp_path: Path) -> None:
        """Registered as they were: their names are the table's of that time."""
        table = catalog.create_table("vision.images", rows_of(range(1), other="x").schema)
        pq.write_table(rows_of(range(50), other="x"), tmp_path / "plain.parquet")
        table.add_files([f"file://{tmp_path}/plain.parquet"])
        assert not is_copied(opened("iceberg://nightly/vision.images", scratch), scratch)
        for name, new in (("camera", "old"), ("other", "camera")):
            with table.update_schema() as update:
                update.rename_column(name, new)
        manifest = opened("iceberg://nightly/vision.images", scratch)
        assert found(manifest) == self.truth(table)
        assert {row["camera"] for row in read_all(manifest)} == {"x"}

    @pytest.mark.parametrize("change", ["names within", "wider type", "new column", "gone and made anew"])
    def test_columns_that_were_others(self, catalog: Any, scratch: Uri, change: str) -> None:
        meta = pa.array([{"a": i, "b": -i} for i in range(50)], pa.struct([("a", pa.int32()), ("b", pa.int32())]))
        rows = rows_of(range(50)).append_column("meta", meta).append_column("night", pa.array([1] * 50, pa.int32()))
        table = catalog.create_table("vision.images", rows.schema)
        table.append(rows)
        for name, new in (("a", "c"), ("b", "a"), ("c", "b")) if change == "names within" else ():
            with table.update_schema() as update:
                update.rename_column(("meta", name), new)
        if change == "gone and made anew":
            with table.update_schema() as update:
                update.delete_column("night")
        with table.update_schema() as update:
            if change == "wider type":
                update.update_column("night", LongType())
            elif change == "gone and made anew":
                update.add_column("night", LongType())
            elif change == "new column":
                update.add_column("later", LongType())
        columns = [name for name in ("camera", "meta", "night", "later") if name in table.schema().column_names]
        if change != "names within":
            values = {**rows.to_pydict(), "image_id": range(100, 150), "later": range(50)}
            schema = table.schema().as_arrow()
            table.append(pa.table([pa.array(values[field.name], field.type) for field in schema], schema))
        config = ManifestConfig(uri="iceberg://nightly/vision.images", carry=tuple(columns))
        read = {row["image_id"]: [row[name] for name in columns] for row in read_all(open_manifest(config, scratch))}
        truth = table.scan().to_arrow().to_pylist()
        assert read == {row["image_id"]: [row[name] for name in columns] for row in truth}

    def test_rows_removed_by_position(self, catalog: Any, scratch: Uri) -> None:
        table = catalog.create_table("vision.images", rows_of(range(1)).schema)
        table.append(rows_of(range(50)))
        (file,) = (task.file.file_path for task in table.scan().plan_files())
        removed = pa.table({"file_path": [file] * 3, "pos": pa.array([0, 3, 49], pa.int64())})
        remove_by_file(table, removed, DataFileContent.POSITION_DELETES)
        table.append(rows_of(range(50, 80)))
        manifest = opened("iceberg://nightly/vision.images", scratch)
        assert [row[0] for row in found(manifest)] == [i for i in range(80) if i not in (0, 3, 49)]
        assert found(manifest) == self.truth(table)

    def test_rows_removed_by_what_is_in_them(self, catalog: Any, scratch: Uri) -> None:
        """As Flink does it."""
        table = catalog.create_table("vision.images", rows_of(range(1)).schema)
        table.append(rows_of(range(50)))
        remove_by_file(table, pa.table({"image_id": [5]}), DataFileContent.EQUALITY_DELETES, [1])
        with pytest.raises(TableError, match=r"by equality deletes \(file.*parquet\), .*rewrite_data_files in Spark"):
            opened("iceberg://nightly/vision.images", scratch)

    def test_partitions(self, catalog: Any, scratch: Uri) -> None:
        table = catalog.create_table("vision.images", rows_of(range(1)).schema)
        with table.update_spec() as update:
            update.add_identity("camera")
        table.append(rows_of(range(50)))
        table.delete("camera = 'a' and image_id < 20")
        manifest = opened("iceberg://nightly/vision.images", scratch)
        assert found(manifest) == self.truth(table)
        assert manifest.num_rows == 40

    def test_no_such_table(self, catalog: Any, scratch: Uri) -> None:
        with pytest.raises(TableError, match=r"iceberg://nightly/vision\.images: there is no such Iceberg table"):
            opened("iceberg://nightly/vision.images", scratch)

    def test_a_folder_does_not_tell_its_current_metadata(self, catalog: Any, scratch: Uri, tmp_path: Path) -> None:
        catalog.create_table("vision.images", rows_of(range(1)).schema).append(rows_of(range(5)))
        with pytest.raises(ManifestError, match=r"is a Iceberg table .* name iceberg://CATALOG/NAMESPACE\.TABLE"):
            opened(str(tmp_path / "warehouse" / "vision" / "images"), scratch)
