from __future__ import annotations

import random
import re
import signal
import subprocess
import sys
import uuid
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from deltalake import DeltaTable, QueryBuilder, write_deltalake
from pyiceberg.catalog import load_catalog
from pyiceberg.manifest import DataFileContent

from pipeline.annotations.compact import compact
from pipeline.annotations.ledger import ANNOTATIONS, OutputStore
from pipeline.annotations.overview import look_over
from pipeline.annotations.run_json import RunJson, RunState
from pipeline.annotations.schema import DELETED, FAILED
from pipeline.config.base import ConfigError
from pipeline.config.loading import parse_settings
from pipeline.lake.base import TableError
from pipeline.lake.config import TableConfig
from pipeline.lake.delta import DeltaOutput
from pipeline.lake.iceberg import IcebergOutput
from pipeline.lake.publish import check_table, publish
from pipeline.storage.lock.claim import check_own
from pipeline.storage.lock.lease import OutputLock
from pipeline.storage.lock.watch import LockHeld
from pipeline.storage.uris import Uri
from testing.s3_server import S3Server
from tests.annotate.manifest.test_from_table import remove_by_file, remove_by_vector
from tests.annotations.output_cases import IDENTITY, output_table
from tests.annotations.test_ledger import Crash, crashing_after
from tests.annotations.test_schema_1 import old_file

ROOT = Path(__file__).parents[2]


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
    rows = output_table([3, 6, 20, 21])
    status = pa.array([*rows["status"].to_pylist()[:3], DELETED])
    place.store.write_rows(rows.set_column(rows.column_names.index("status"), "status", status), IDENTITY)
    assert place.publish() == (3, 2)
    assert same(place.rows(), place.truth())
    assert place.publish() == (0, 0)
    assert len(place.versions()) == 2
    expected = {"run_id": "run-1", "weights_sha256": "a" * 64, "images": "10", "annotated": "10", "failed": "0"}
    expected["deleted"] = "1"
    assert {f"maskfleet.{key}": value for key, value in expected.items()}.items() <= place.properties().items()
    check_own(place.uri, ANNOTATIONS)


def test_thirty_nights(local: Place) -> None:
    """New images, failed ones done again, some as they were, others gone, files joined: each night is a version, and
    each version stays, that of files of which no row does as well.
    """
    rng = random.Random(7)
    nights: dict[int, pa.Table] = {}
    config = {"output": {"table": local.config.model_dump(mode="json")}}
    for night in range(30):
        RunJson(run_id=f"night-{night}", state=RunState.FINISHED, config=config).write(local.uri)
        store = OutputStore(local.uri, keep_replaced=True)
        identity = replace(IDENTITY, run_id=f"night-{night}")
        store.recover(free)
        if rng.random() < 0.5:
            failed = [t.filter(pc.equal(t["status"], FAILED)) for t in store.iter_ids(store.files().settled, None)]
            assert store.strip_failed(free) == sum(table.num_rows for table in failed)
            for table in failed:  # by ids and files as they were
                again = table["image_id"].to_pylist()
                if again:
                    store.write_rows(output_table(again, [i for i in again if rng.random() < 0.4]), identity)
        if night % 4 == 3:
            gone = rng.choice(list(store.files().settled))
            store.replace({gone: store.files().settled[gone].counts.rows}, output_table([0]).slice(1), identity, free)
        if night % 10 == 9:
            compact(local.uri, images_per_file=12)
        new = list(range(night * 10, night * 10 + rng.randrange(2, 9)))
        bad = new if rng.random() < 0.2 else [i for i in new[1:] if rng.random() < 0.3]
        store.write_rows(output_table(new, bad), identity)
        if rng.random() < 0.1 and night < 29:
            continue  # a run that was killed before it published: the next one does it
        local.publish()
        assert same(local.rows(), local.truth())
        assert local.properties()["maskfleet.run_id"] == f"night-{night}"
        nights[local.versions()[-1]] = local.truth()
        assert local.publish() == (0, 0)
    for version, rows in nights.items():
        assert same(local.rows(version), rows)
    vanished = [name for f in store.files().footers.values() if not f.counts.rows for name in f.replaces]
    assert min(len(nights), len(vanished)) > 15
    assert OutputStore(local.uri).recover(free).replaced
    assert all(footer.counts.rows for footer in local.store.files().footers.values())
    assert local.publish() == (0, 0)
    assert same(local.rows(), local.truth())


@pytest.mark.parametrize("keep_replaced", [True, False])
def test_an_output_of_which_no_row_is_left(local: Place, keep_replaced: bool) -> None:
    """A run that does all of them again, because all had failed, and died before the first was done."""
    store = OutputStore(local.uri, keep_replaced=keep_replaced)
    store.write_rows(output_table(range(5), range(5)), IDENTITY)
    assert local.publish() == (1, 0)
    assert store.strip_failed(free) == 5
    assert local.publish() == (0, 1)
    assert local.rows().num_rows == 0
    told = local.properties()
    assert (told["maskfleet.images"], told["maskfleet.files"]) == ("0", "0")
    assert told.get("maskfleet.run_id") == ("run-1" if keep_replaced else None)
    assert local.publish() == (0, 0)
    store.write_rows(output_table(range(5)), replace(IDENTITY, run_id="run-2"))
    assert local.publish() == (1, 0)
    assert same(local.rows(), local.truth())


KILLED = """
import os, signal, sys
from unittest import mock
from pipeline.config.loading import parse_settings
from pipeline.lake.config import TableConfig
from pipeline.lake import delta, iceberg, publish
from pipeline.storage.uris import Uri
import pyiceberg.table

def dying(real, when):
    def call(*args, **kwargs):
        if when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        real(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)
    return call

uri, where, *settings = sys.argv[1:]
name, when = where.split()
kind = {"delta": delta.DeltaOutput, "iceberg": iceberg.IcebergOutput, "catalog": pyiceberg.table.Table}[name]
method = "_do_commit" if name == "catalog" else "commit"
with mock.patch.object(kind, method, dying(getattr(kind, method), when)):
    publish.publish(Uri(uri), TableConfig.model_validate_json(settings[0]))
"""


@pytest.mark.parametrize("where", ["delta before", "delta after", "catalog before", "catalog after"])
def test_a_kill_beside_the_commit_is_mended_by_the_next(where: str, tmp_path: Path) -> None:
    place = place_of("delta" if "delta" in where else "iceberg", str(tmp_path / "out"), tmp_path)
    store = OutputStore(place.uri, keep_replaced=True)
    store.write_rows(output_table(range(8), {3}), IDENTITY)
    place.publish()
    store.strip_failed(free)
    store.write_rows(output_table([3, 10, 11]), IDENTITY)
    command = [sys.executable, "-c", KILLED, str(place.uri), where, place.config.model_dump_json()]
    killed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert place.publish() == ((2, 1) if "before" in where else (0, 0))
    assert same(place.rows(), place.truth())
    assert len(place.versions()) == 2


def test_who_else_writes_there(local: Place) -> None:
    local.store.write_rows(output_table(range(5)), IDENTITY)
    with OutputLock(local.uri, "another run"), pytest.raises(LockHeld):
        publish(local.uri, local.config, wait_s=0.0)
    local.publish()
    before = local.rows()
    if local.config.kind == "delta":
        write_deltalake(str(local.uri), before.slice(0, 2), mode="append")
    else:
        local.iceberg().append(local.iceberg().scan().to_arrow().slice(0, 2))
    local.store.write_rows(output_table(range(5, 9)), IDENTITY)
    with pytest.raises(TableError, match=r"has files that are none of .*out/data: .*\.parquet"):
        local.publish()


def test_rows_that_somebody_else_removed(local: Place) -> None:
    """The files have them still, and the ledger too."""
    local.store.write_rows(output_table(range(5)), IDENTITY)
    local.publish()
    if local.config.kind == "delta":
        remove_by_vector(Path(str(local.uri)), [3])
    else:
        (file,) = (task.file.file_path for task in local.iceberg().scan().plan_files())
        removed = pa.table({"file_path": [file], "pos": [3]})
        remove_by_file(local.iceberg(), removed, DataFileContent.POSITION_DELETES)
    assert local.rows().num_rows == 4
    local.store.write_rows(output_table(range(5, 9)), IDENTITY)
    with pytest.raises(TableError, match=r"rows were removed from .* by (deletion vectors|delete files \()"):
        local.publish()
    assert local.rows().num_rows == 4


def test_a_commit_of_another_writer_in_between(local: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """All is looked at again."""
    local.store.write_rows(output_table(range(5)), IDENTITY)
    local.publish()
    local.store.write_rows(output_table(range(5, 9)), IDENTITY)
    kind = DeltaOutput if local.config.kind == "delta" else IcebergOutput
    commit, others = kind.commit, iter([True])

    def overtaken(table: Any, *args: Any) -> str:
        if next(others, False):
            if local.config.kind == "delta":
                local.delta().alter.set_table_properties({"delta.logRetentionDuration": "interval 90 days"})
            else:
                with local.iceberg().transaction() as transaction:
                    transaction.set_properties({"owner": "somebody"})
        return commit(table, *args)

    monkeypatch.setattr(kind, "commit", overtaken)
    assert local.publish() == (1, 0)
    assert same(local.rows(), local.truth())
    assert local.publish() == (0, 0)


NOW = datetime(2024, 5, 6, 7, 8, 9, 123456, timezone.utc)
TAKEN = {
    "large text": pa.array(["a", None, ""], pa.large_string()),
    "large lists": pa.array([[1], [], None], pa.large_list(pa.int64())),
    "dictionary": pa.array(["a", "b", None]).dictionary_encode(),
    "microseconds": pa.array([NOW, None, NOW], pa.timestamp("us", "UTC")),
    "seconds": pa.array([NOW.replace(microsecond=0), None, NOW.replace(microsecond=0)], pa.timestamp("s", "UTC")),
    "bytes beyond 127": pa.array([0, 200, 255], pa.uint8()),
    "uint16": pa.array([0, 200, 65535], pa.uint16()),
    "decimal": pa.array([None, 1, 2], pa.decimal128(10, 2)),
    "date": pa.array([NOW.date(), None, NOW.date()]),
    "struct": pa.array([{"a": 1}, {"a": None}, {"a": 3}], pa.struct([("a", pa.int8())])),
}


@pytest.mark.parametrize("name", TAKEN)
def test_types_of_carried_columns(name: str, local: Place) -> None:
    local.store.write_rows(output_table([1, 2, 3], carried=pa.table({"it": TAKEN[name]})), IDENTITY)
    local.publish()
    assert local.rows()["it"].to_pylist() == TAKEN[name].to_pylist()


@pytest.mark.parametrize("kind", [pa.uint64(), pa.float16(), pa.null(), pa.timestamp("ns"), pa.time32("s")], ids=str)
def test_types_that_tables_do_not_have(kind: pa.DataType, local: Place) -> None:
    schema = output_table([1], carried=pa.table({"it": pa.array([None], kind)})).schema
    with pytest.raises(TableError, match=f"cannot hold column 'it': it has no type for {re.escape(str(kind))}"):
        check_table(local.uri, local.config, schema)


def test_files_of_an_earlier_schema(local: Place) -> None:
    """What they do not have is null, and the table gets the new columns."""
    old_file(local.store, output_table(range(5)))
    local.publish()
    local.store.write_rows(output_table(range(5, 9)), IDENTITY)
    assert local.publish() == (1, 0)
    rows = local.rows()
    assert rows["image_id"].to_pylist() == list(range(9))
    assert rows["run_id"].to_pylist() == [None] * 5 + ["run-1"] * 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["kind=iceberg"], "name must be namespace.table"),
        (["kind=delta", "name=a.b"], "are of Iceberg tables"),
        (["kind=iceberg", "name=a.b", "properties.s3.secret-access-key=x"], "may hold a secret"),
        (["kind=iceberg", "name=a.b", "properties={uri: 'postgresql://me:pw@host/db'}"], "'uri' may hold a secret"),
        (["kind=iceberg", "name=a.b", "properties={token: abc}"], "PYICEBERG_CATALOG__<NAME>__TOKEN"),
    ],
)
def test_settings_that_are_refused(settings: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        parse_settings(TableConfig, "--table", settings)
    assert "pw" not in str(refused.value)
    assert "abc" not in str(refused.value)


def test_files_of_which_no_row_stays(tmp_path: Path) -> None:
    """They are kept as those that were replaced, and so are those that they had replaced; their ids may come again."""
    store = OutputStore(Uri(str(tmp_path / "out")), keep_replaced=True)
    contents: dict[Path, bytes] = {}

    def check(rows: int, kept: int) -> None:
        assert all(path.read_bytes() == content for path, content in contents.items())
        contents.update({path: path.read_bytes() for path in (tmp_path / "out" / "data").iterdir()})
        assert not store.recover(free)
        assert store.files().counts.rows == rows
        assert sum(footer.counts.rows for footer in store.files().footers.values()) == rows + kept
        assert OutputStore(store.uri).look().counts.rows == rows

    for night in range(3):
        identity = replace(IDENTITY, run_id=f"night-{night}")
        store.write_rows(output_table(range(5), {3}), identity)
        check(5, 11 * night)
        store.strip_failed(free)
        check(4, 11 * night + 5)
        ((entry, footer),) = store.files().settled.items()
        store.replace({entry: 4}, output_table([0]).slice(1), footer.identity, free)
        check(0, 11 * night + 9)
        store.write_rows(output_table([7, 8], {7, 8}), identity)
        assert store.strip_failed(free) == 2
        check(0, 11 * night + 11)
    with suppress(Crash):
        crashing_after(OutputStore(store.uri), 7).recover(free)
    assert store.files().counts.rows == 0
    assert OutputStore(store.uri).recover(free).replaced
    assert not store.files().footers


def test_rows_of_other_settings_that_made_way(tmp_path: Path) -> None:
    store = OutputStore(Uri(str(tmp_path / "out")), keep_replaced=True)
    store.write_rows(output_table(range(3), range(3)), IDENTITY)
    other = replace(IDENTITY, config_digest="d" * 64, run_id="run-2")
    schema = output_table([0]).schema
    store.make_way(store.files().in_the_way(other, schema), free)
    store.write_rows(output_table(range(3)), other)
    for look in (store.recover(free).files, store.files(), OutputStore(store.uri).look()):
        look.check_identity(other, schema)
        assert (look.identity(), look.counts.annotated) == (other, 3)
    RunJson(state=RunState.FINISHED, config={"output": {"table": {"keep_replaced": True}}}).write(store.uri)
    assert not look_over(store.uri).problems
