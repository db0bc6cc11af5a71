from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable, QueryBuilder
from pyiceberg.catalog import load_catalog

from pipeline.annotations.ledger import ANNOTATIONS, OutputStore
from pipeline.lake.config import TableConfig
from pipeline.lake.publish import publish
from pipeline.storage.lock.claim import check_own
from pipeline.storage.uris import Uri
from testing.s3_server import S3Server
from tests.annotations.output_cases import IDENTITY, output_table


def free() -> None:
    """A fence that nobody closes."""


class Place:
    """An output and its table, which this reads with the table's own library alone."""

    def __init__(self, uri: str, config: TableConfig, endpoint: str | None) -> None:
        self.uri = Uri(uri)
        self.config = config
        self.endpoint = endpoint
        self.store = OutputStore(self.uri)

    def publish(self) -> tuple[int, int]:
        done = publish(self.uri, self.config)
        return done.added, done.removed

    @property
    def options(self) -> dict[str, str]:
        return {"AWS_ENDPOINT_URL": self.endpoint, "AWS_ALLOW_HTTP": "true"} if self.endpoint else {}

    def delta(self, version: int | None = None) -> DeltaTable:
        return DeltaTable(self.uri.secret_text, version=version, storage_options=self.options)

    def iceberg(self) -> Any:
        properties = dict(self.config.properties)
        if self.endpoint:
            properties["s3.endpoint"] = self.endpoint
        return load_catalog("default", **properties).load_table(str(self.config.name))

    def versions(self) -> list[int]:
        if self.config.kind == "delta":
            return list(range(self.delta().version() + 1))
        return [snapshot.snapshot_id for snapshot in self.iceberg().snapshots()]

    def rows(self, version: int | None = None) -> pa.Table:
        if self.config.kind == "iceberg":
            return self.iceberg().scan(snapshot_id=version).to_arrow().sort_by("image_id")
        query = QueryBuilder().register("t", self.delta(version))
        return pa.table(query.execute("select * from t order by image_id").read_all())

    def properties(self) -> dict[str, str]:
        if self.config.kind == "delta":
            found = self.delta().history(1)[0]
        else:
            found = self.iceberg().current_snapshot().summary.additional_properties
        return {key: value for key, value in found.items() if key.startswith("maskfleet.")}

    def truth(self) -> pa.Table:
        files = self.store.files().settled
        return pa.concat_tables(self.store.iter_ids(files, None)).sort_by("image_id")


def same(found: pa.Table, wanted: pa.Table) -> bool:
    """Whether two tables have the same rows. A table's own types may be wider; pyiceberg reads lists that are null as
    empty ones, so ``status`` tells which images failed.
    """

    def rows(table: pa.Table) -> list[dict[str, Any]]:
        return [{**row, "detections": row["detections"] or []} for row in table.to_pylist()]

    return bool(found.column_names == wanted.column_names and rows(found) == rows(wanted))


def place_of(kind: str, uri: str, folder: Path, endpoint: str | None = None) -> Place:
    if kind == "delta":
        return Place(uri, TableConfig(kind="delta"), endpoint)
    warehouse = f"{uri}-warehouse" if endpoint else f"file://{folder}/warehouse"
    properties = {"type": "sql", "uri": f"sqlite:///{folder}/catalog.db", "warehouse": warehouse}
    return Place(uri, TableConfig(kind="iceberg", name="vision.labels", properties=properties), endpoint)


@pytest.fixture(params=["delta", "iceberg", "delta on s3", "iceberg on s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    kind, _, on_s3 = request.param.partition(" ")
    if not on_s3:
        return place_of(kind, str(tmp_path / "out"), tmp_path)
    server: S3Server = request.getfixturevalue("s3")
    return place_of(kind, f"s3://bucket/{uuid.uuid4().hex}/out", tmp_path, server.endpoint)


@pytest.fixture(params=["delta", "iceberg"])
def local(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return place_of(request.param, str(tmp_path / "out"), tmp_path)


def test_files_come_and_go_with_one_commit_each(place: Place) -> None:
    place.store.write_rows(output_table(range(5), {3}), IDENTITY)
    place.store.write_rows(output_table(range(5, 9), {6}), IDENTITY)
    assert place.publish() == (2, 0)
    assert same(place.rows(), place.truth())
    assert place.publish() == (0, 0)
    place.store.strip_failed(free)
    place.store.write_rows(output_table([3, 6, 20]), IDENTITY)
    assert place.publish() == (3, 2)
    assert same(place.rows(), place.truth())
    assert place.publish() == (0, 0)
    assert len(place.versions()) == 2
    expected = {"run_id": "run-1", "weights_sha256": "a" * 64, "images": "10", "annotated": "10", "failed": "0"}
    assert {f"maskfleet.{key}": value for key, value in expected.items()}.items() <= place.properties().items()
    check_own(place.uri, ANNOTATIONS)
