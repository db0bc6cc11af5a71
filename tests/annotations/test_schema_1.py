"""Outputs that the release before wrote: files without the columns from ``run_id`` to ``object_version``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.annotations.compact import compact
from pipeline.annotations.data_folder import DataFolder
from pipeline.annotations.ledger import IdentityMismatch, OutputStore
from pipeline.annotations.overview import look_over
from pipeline.annotations.overview_text import overview_text
from pipeline.annotations.schema import OBJECT_COLUMNS, RESERVED_NAMES
from pipeline.messages.counts import size
from pipeline.storage.objects.open import open_objects
from pipeline.storage.uris import Uri
from testing.output_rows import NAMES_OF_1, as_schema_1
from tests.annotations.output_cases import IDENTITY, output_table
from tests.annotations.test_damage import READERS
from tests.export.export_cases import IDENTITY as EXPORTED
from tests.export.export_cases import Picture, awkward_pictures, table_of

LATER = replace(IDENTITY, run_id="run-2")
UNKNOWN = dict.fromkeys(OBJECT_COLUMNS.names)


def old_file(store: OutputStore, table: pa.Table, renamed: Mapping[str, str] | None = None) -> Path:
    path = Path(str(store.uri)) / "data" / store.write_rows(table, IDENTITY).name
    as_schema_1(path, renamed)
    return path


def read(store: OutputStore, columns: Sequence[str] | None = None) -> list[dict]:
    objects, folder = open_objects(store.uri), DataFolder(store.uri, 4)
    return [row for entry in folder.current(objects) for row in folder.read(objects, entry, columns).to_pylist()]


@pytest.fixture
def store(tmp_path: Path) -> OutputStore:
    return OutputStore(Uri(str(tmp_path / "out")))


def test_every_reader_reads_them(store: OutputStore) -> None:
    folder = Path(str(store.uri)) / "data"
    for pictures in (awkward_pictures(), [Picture(999, [])], [Picture(1000, [])]):
        store.write_rows(table_of(pictures), EXPORTED)
    wanted = {name: reader(store.uri) for name, reader in READERS.items()}
    files = sorted(folder.iterdir())
    for path in files:  # first an output of both, then one of old files alone
        as_schema_1(path)
        assert pq.read_schema(path).names == list(NAMES_OF_1)
        assert {name: reader(store.uri) for name, reader in READERS.items()} == wanted


def test_what_they_cannot_know(store: OutputStore) -> None:
    carried = pa.table({"split": ["a", "b", "c"]})
    old_file(store, output_table([1, 2, 3], failed=[2], carried=carried))
    for row, split in zip(read(store), "abc", strict=True):
        assert list(row) == [*RESERVED_NAMES, "split"]
        assert (row["run_id"], row["split"]) == ("run-1", split)
        assert {name: row[name] for name in UNKNOWN} == UNKNOWN
    asked = ["image_id", "run_id", "object_size", "detections.list.element.score"]
    store.write_rows(output_table([4], carried=carried[:1]), LATER)
    rows = read(store, asked)
    assert {tuple(row) for row in rows} == {("image_id", "run_id", "object_size", "detections")}
    assert {row["image_id"]: row["run_id"] for row in rows} == {1: "run-1", 2: "run-1", 3: "run-1", 4: "run-2"}
    assert sorted(row["run_id"] for row in read(store, ["run_id"])) == ["run-1"] * 3 + ["run-2"]


def test_show_says_what_they_cannot_know(store: OutputStore) -> None:
    store.write_rows(output_table([4, 5]), IDENTITY)
    words = "of an earlier release, which do not say which version of a picture they were made from"
    assert words not in " ".join(overview_text(look_over(store.uri)).split())
    old_file(store, output_table([1, 2, 3]))
    assert f"2 files, 5 rows, {size(look_over(store.uri).num_bytes)} 3 rows {words}" in " ".join(
        overview_text(look_over(store.uri)).split()
    )


def test_compacted_rows_keep_their_runs(store: OutputStore) -> None:
    old_file(store, output_table([1, 2, 3], failed=[2]))
    store.write_rows(output_table([4]), LATER)
    old_file(store, output_table([5]))
    compact(store.uri)
    (file,) = (Path(str(store.uri)) / "data").iterdir()
    found = {row["image_id"]: row["run_id"] for row in pq.read_table(file).to_pylist()}
    assert found == {1: "run-1", 2: "run-1", 3: "run-1", 4: "run-2", 5: "run-1"}


def test_batches_and_row_groups(store: OutputStore) -> None:
    old_file(store, output_table(range(3000)))
    objects, folder = open_objects(store.uri), DataFolder(store.uri, 4)
    (entry,) = folder.current(objects)
    wanted = [{"image_id": i, "run_id": "run-1", "object_mtime": None} for i in range(3000)]
    with folder.open(objects, entry) as file:
        columns = ["object_mtime", "image_id", "run_id"]
        assert [row for batch in file.iter_batches(500, columns) for row in batch.to_pylist()] == wanted
        assert file.read_row_group(1, columns).to_pylist() == wanted[2048:]
        assert [batch.to_pylist() for batch in file.iter_batches(2000, ["object_size"])][1] == [
            {"object_size": None}
        ] * 1000


def test_a_run_goes_on_with_them(store: OutputStore) -> None:
    schema = output_table([1]).schema
    old = old_file(store, output_table([1, 2, 3], failed=[2, 3]))
    store.files().check_identity(LATER, schema)
    with pytest.raises(IdentityMismatch, match="column a"):
        store.files().check_identity(LATER, output_table([1], carried=pa.table({"a": [1]})).schema)
    store.write_rows(output_table([4], failed=[4]), LATER)
    store.files().check_identity(LATER, schema)
    assert store.strip_failed(lambda: None) == 3
    assert not old.exists()
    (file,) = old.parent.iterdir()
    assert pq.read_metadata(file).metadata[b"maskfleet.schema_version"] == b"2"
    (row,) = pq.read_table(file).to_pylist()
    assert (row["image_id"], row["run_id"]) == (1, "run-1")


def test_a_replacement_that_was_cut_off_is_finished(store: OutputStore) -> None:
    old = old_file(store, output_table([1, 2, 3], failed=[2]))
    content = old.read_bytes()
    store.strip_failed(lambda: None)
    old.write_bytes(content)
    assert OutputStore(store.uri).recover(lambda: None).replaced == (old.name,)
    assert sorted(row["image_id"] for row in read(store)) == [1, 3]


@pytest.mark.parametrize("name", ["run_id", "Object_Etag", "object_size.of"])
def test_a_carried_column_whose_name_was_free_then(store: OutputStore, name: str) -> None:
    """What is read by that name now is the output's own; without it, the output goes on."""
    path = old_file(store, output_table([1, 2], carried=pa.table({"x": [8, 9], "split": ["a", "b"]})), {"x": name})
    assert pq.read_schema(path).names == [*NAMES_OF_1, name, "split"]
    assert [list(row) for row in read(store)] == [[*RESERVED_NAMES, "split"]] * 2
    assert {row["run_id"] for row in read(store, ["image_id", "run_id"])} == {"run-1"}
    store.files().check_identity(LATER, output_table([1], carried=pa.table({"split": ["a"]})).schema)
