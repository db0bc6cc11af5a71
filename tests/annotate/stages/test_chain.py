"""All stages in a row, without Ray: the names that rows have on their way, and the columns that pass them all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.annotate.manifest.rules import ManifestError, check_carry
from pipeline.annotate.stages.encode import Encode
from pipeline.annotate.stages.fetch_decode import FetchDecode
from pipeline.annotate.stages.guard import InProcessGuard
from pipeline.annotate.stages.ordering import BatchOrder
from pipeline.annotate.stages.rows import WORKING_NAMES
from pipeline.annotate.stages.segment import Segment
from pipeline.annotate.stages.stage import Stage
from pipeline.annotations.pictures import PictureSource
from pipeline.annotations.schema import RESERVED_NAMES, output_schema
from pipeline.model.categories import Category
from testing.stand_in_detector import stand_in
from tests.annotate.stages.test_fetch_decode import discard, encoded, manifest_rows, photo

CATEGORIES = tuple(Category(i, name) for i, name in enumerate(("cat", "dog", "owl")))


def chain(**carried: list[Any]) -> list[pa.Table]:
    """The rows of two images, one of them broken: as they are read, and behind each stage."""
    rows = manifest_rows([None, None], [encoded(photo(40, 60)), b"broken"], **carried)
    schema = output_schema(pa.string(), pa.schema([rows.schema.field(name) for name in carried]))
    fetch_decode = FetchDecode(PictureSource(), BatchOrder(64, 96, 4, 16), InProcessGuard(), discard)
    stages: list[Stage] = [
        Segment(stand_in(), 4, (0, 0, 0), InProcessGuard(), discard),
        Encode(schema, CATEGORIES, InProcessGuard(), discard),
    ]
    tables = [rows, *fetch_decode(rows)]
    for stage in stages:
        tables.append(stage(tables[-1]))
    return tables


def test_refused_names_are_those_that_rows_have_somewhere() -> None:
    *_, last = tables = chain()
    assert set(last.column_names) == set(RESERVED_NAMES)
    assert {name for table in tables for name in table.column_names} == WORKING_NAMES | set(RESERVED_NAMES)


@pytest.mark.parametrize("name", sorted(WORKING_NAMES | set(RESERVED_NAMES)))
def test_refused(name: str) -> None:
    with pytest.raises(ManifestError, match=f"column '{name}' cannot be carried: .*; rename it in the manifest"):
        check_carry([name])


@pytest.mark.parametrize(
    ("carry", "message"),
    [
        (["Status"], "column 'Status' cannot be carried: the output has 'status'; rename"),
        (["HEIGHT"], "the output has 'height'"),
        (["detections.list.element.score"], "the output has 'detections'"),
        (["split", "Split"], "column 'Split' cannot be carried: it differs from 'split' in case alone"),
    ],
)
def test_names_that_readers_do_not_tell_apart(carry: list[str], message: str, tmp_path: Path) -> None:
    """For DuckDB such a column is another one's double, and its rule says which: it renames the later one."""
    with pytest.raises(ManifestError, match=message):
        check_carry(carry)
    names = [*RESERVED_NAMES, *carry]
    pq.write_table(pa.table({name: [1] for name in names}), tmp_path / "t.parquet")
    read = [row[0] for row in duckdb.sql(f"describe select * from '{tmp_path}/t.parquet'").fetchall()]
    assert (read != names) == ("." not in carry[0])


@pytest.mark.parametrize(
    "name", ["stored_height", "stored_width", "bbox", "area", "category_id", "split", "Scores", "a.status"]
)
def test_any_other_column_passes_all_stages(name: str) -> None:
    check_carry([name])
    *_, last = chain(**{name: [7, None]})
    assert last.column_names == [*RESERVED_NAMES, name]
    assert last[name].to_pylist() == [7, None]
    assert last["status"].to_pylist() == ["annotated", "failed"]
