from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.annotations.data_file import Identity, OutputError, data_file_name, encode_data_file
from pipeline.annotations.ledger import OutputStore
from pipeline.annotations.reader import open_source
from pipeline.annotations.run_json import RunState
from pipeline.model.categories import Category
from pipeline.storage.uris import Uri
from tests.export.export_cases import CATEGORIES, IDENTITY, MASKS, Picture, table_of, write_output

MASK = MASKS["full"]


def test_looked_over(tmp_path: Path) -> None:
    uri = write_output(tmp_path / "out", [Picture(1, [MASK]), Picture(2, None)], [Picture(3, [])])
    source = open_source(uri)
    assert (source.counts.annotated, source.counts.failed) == (2, 1)
    assert (source.categories, source.all_categories) == (CATEGORIES, True)
    assert (source.string_ids, source.finished, source.image_root) == (False, True, Uri("s3://pictures"))
    assert source.provenance["run_ids"] == ["20260101T000000-run", "20260101T000001-run"]
    assert source.provenance["weights_sha256"] == IDENTITY.weights_sha256
    ids = [image_id for batch in source.batches(["image_id"]) for image_id in batch.column("image_id").to_pylist()]
    assert sorted(ids) == [1, 2, 3]
    assert [entry.name for entry in source.entries] == sorted(entry.name for entry in source.entries)


def test_categories_that_were_found(tmp_path: Path) -> None:
    """Where run.json does not list them; each in another file."""
    pictures = [[Picture(label, [MASK], labels=[label])] for label in (0, 1)]
    source = open_source(write_output(tmp_path / "out", *pictures, [Picture(7, [])], list_categories=False))
    assert not source.all_categories
    assert source.categories == (Category(3, "cat"), CATEGORIES[0])


def test_nothing_was_found(tmp_path: Path) -> None:
    assert open_source(write_output(tmp_path / "out", [Picture(1, [])], list_categories=False)).categories == ()


@pytest.mark.parametrize("state", RunState)
def test_a_run_that_goes_on(tmp_path: Path, state: RunState) -> None:
    source = open_source(write_output(tmp_path / "out", [Picture(1, [])], state=state))
    assert source.finished is (state in (RunState.FINISHED, RunState.NOTHING_TO_DO, RunState.TOO_MANY_FAILURES))


def test_without_run_json(tmp_path: Path) -> None:
    uri = write_output(tmp_path / "out", [Picture(1, [MASK], labels=[1])])
    (tmp_path / "out" / "run.json").unlink()
    source = open_source(uri)
    assert (source.categories, source.all_categories) == ((Category(3, "cat"),), False)
    assert (source.finished, source.image_root) == (True, None)


def test_a_file_that_was_replaced(tmp_path: Path) -> None:
    """After a crash both are there until the next run."""
    old = [Picture(1, [MASK]), Picture(2, None)]
    uri = write_output(tmp_path / "out", old)
    name = data_file_name(table_of(old)["image_id"])
    kept = table_of(old[:1])
    content = encode_data_file(kept, replace(IDENTITY, run_id="later"), 3, {name: 1})
    (tmp_path / "out" / "data" / data_file_name(kept["image_id"])).write_bytes(content)
    source = open_source(uri)
    assert (source.counts.annotated, source.counts.failed) == (1, 0)
    assert sum(len(batch) for batch in source.batches(["image_id"])) == 1


def _cut_off(folder: Path) -> None:
    (file,) = (folder / "data").iterdir()
    file.write_bytes(file.read_bytes()[:-1])


def _foreign(folder: Path) -> None:
    (folder / "data" / "mine.parquet").write_bytes(b"PAR1")


def _other_weights(folder: Path) -> None:
    other: Identity = replace(IDENTITY, weights_sha256="b" * 64)
    OutputStore(Uri(str(folder))).write_rows(table_of([Picture(9, [])]), other)


def _garbage(folder: Path) -> None:
    (folder / "run.json").write_text("{")


def _no_data(folder: Path) -> None:
    for file in (folder / "data").iterdir():
        file.unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_cut_off, "is cut off"),
        (_foreign, "did not write"),
        (_other_weights, "different weights"),
        (_no_data, "has no data"),
        (_garbage, "run.json is damaged"),
    ],
)
def test_damaged_outputs(tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    uri = write_output(tmp_path / "out", [Picture(1, [MASK])])
    damage(tmp_path / "out")
    with pytest.raises(OutputError, match=message):
        open_source(uri)
