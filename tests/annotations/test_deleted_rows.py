"""Rows that are marked as deleted: for whoever asks what is on the pictures, they are not there."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from pipeline.annotate.summary.page import read_shapes, render_summary
from pipeline.annotate.summary.sample import Sample
from pipeline.annotations.compact import compact
from pipeline.annotations.data_file import OutputError
from pipeline.annotations.ledger import OutputStore
from pipeline.annotations.overview import look_over
from pipeline.annotations.overview_text import overview_text
from pipeline.annotations.rows import OutputRows
from pipeline.annotations.run_json import Changes, ImageCounts, RunJson, RunState
from pipeline.annotations.schema import DELETED, there
from pipeline.storage.uris import Uri
from tests.annotations.output_cases import IDENTITY, output_table
from tests.annotations.test_damage import READERS
from tests.export.export_cases import IDENTITY as EXPORTED
from tests.export.export_cases import Picture, awkward_pictures, table_of

MASK = np.ones((5, 4), bool)


def marked(table: pa.Table, ids: Collection[int]) -> pa.Table:
    """The same rows, some of them of pictures that are gone."""
    gone = pc.is_in(table["image_id"], pa.array(sorted(ids), pa.int64()))
    at = table.column_names.index("status")
    return table.set_column(at, table.schema.field("status"), pc.if_else(gone, DELETED, table["status"]))


def test_rows_are_copied_only_where_some_are_gone() -> None:
    table = output_table([1, 2, 3])
    assert there(table) is table
    assert there(marked(table, [2]))["image_id"].to_pylist() == [1, 3]
    assert there(marked(table, [1, 2, 3])).num_rows == 0


def without_files(found: Any) -> Any:
    """What a reader gives, without the names of the files."""
    if isinstance(found, tuple) and len(found) == 2 and isinstance(found[1], list):  # of evaluate
        rows = [row for place, *columns in found[1] if columns[0] for row in zip(*columns, strict=True)]
        return found[0], rows
    return found


# "resume" reads them, since their ids are in the output; the books count them apart.
@pytest.mark.parametrize("name", sorted(READERS.keys() - {"resume", "identity", "books", "rows by id"}))
def test_no_reader_finds_them(tmp_path: Path, name: str) -> None:
    pictures = [*awkward_pictures(), Picture(997, []), Picture(998, [])]
    lost = {pictures[0].id, pictures[2].id, 998, 999}
    rows = table_of(pictures)
    with_them, without = (OutputStore(Uri(str(tmp_path / folder))) for folder in ("with", "without"))
    with_them.write_rows(marked(rows, lost), EXPORTED)
    with_them.write_rows(marked(table_of([Picture(999, [MASK])]), lost), EXPORTED)
    without.write_rows(rows.filter(pc.invert(pc.is_in(rows["image_id"], pa.array(sorted(lost))))), EXPORTED)
    found, wanted = (without_files(READERS[name](store.uri)) for store in (with_them, without))
    if name == "show":
        assert found[0].deleted == 4
        found = (replace(found[0], deleted=0), *found[1:])
    assert found == wanted


def test_a_row_that_is_asked_for(tmp_path: Path) -> None:
    store = OutputStore(Uri(str(tmp_path / "out")))
    store.write_rows(marked(output_table([1, 2, 3]), {2}), IDENTITY)
    assert [row["image_id"] for row in OutputRows(store.uri).by_id(["3", "1"])] == [3, 1]
    with pytest.raises(OutputError, match="has no image 2"):
        OutputRows(store.uri).by_id(["1", "2"])


def test_they_stand_beside_the_books(tmp_path: Path) -> None:
    store = OutputStore(Uri(str(tmp_path / "out")))
    store.write_rows(marked(output_table([0, 1, 2, 3, 4], failed=[4]), {1, 2}), IDENTITY)
    run = RunJson(state=RunState.FINISHED, images=ImageCounts(3, 2, 1, 2), changes=Changes(1, 2, 0, 2, 0))
    run.write(store.uri)
    overview = look_over(store.uri)
    assert (overview.pending, overview.manifest) == (0, 3)
    text = " ".join(overview_text(overview).split())
    assert "3 in the manifest 2 annotated 1 failed (33.33%) 0 pending 2 deleted, beside these" in text
    assert "since the run before: 1 new, 2 changed, 2 deleted, 0 unchanged" in text
    assert "not in the manifest (any more)" not in text
    shapes = read_shapes(overview)
    assert (shapes.images, sum(shapes.scores)) == (2, 3)  # of 0 and 3
    page = render_summary(overview, shapes, Sample())
    assert "<dd>1 new, 2 changed, 2 deleted, 0 unchanged</dd>" in page
    assert "<dd>2 rows, whose pictures are gone</dd>" in page
    # A first run has no run before it.
    replace(run, changes=Changes(new=3)).write(store.uri)
    overview = look_over(store.uri)
    text = " ".join(overview_text(overview).split())
    assert "gone 3 new failures" in text
    assert "since the run before" not in text + render_summary(overview, shapes, Sample()).lower()
    # A run at work: old rows of changed pictures are there until the new ones take their places.
    at_work = replace(run, state=RunState.RUNNING, run_id="run-9", images=ImageCounts(), changes=Changes(4, 2, 1))
    at_work.this_run.images = 6
    at_work.write(store.uri)
    assert (look_over(store.uri).pending, look_over(store.uri).manifest) == (6, 7)


def test_compacting_keeps_them(tmp_path: Path) -> None:
    store = OutputStore(Uri(str(tmp_path / "out")))
    store.write_rows(marked(output_table([0, 1]), {1}), IDENTITY)
    store.write_rows(marked(output_table([2, 3]), {2, 3}), IDENTITY)
    before = store.files().counts
    compact(store.uri)
    assert len(store.files().settled) == 1
    assert OutputStore(store.uri).files().counts == before
