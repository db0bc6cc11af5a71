"""All stages in a row, without Ray: the names that rows have on their way, and the columns that pass them all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.annotate import graph
from pipeline.annotate.config import ManifestConfig
from pipeline.annotate.manifest.open import open_manifest
from pipeline.annotate.manifest.rules import ManifestError, check_carry
from pipeline.annotate.pending.antijoin import find_pending
from pipeline.annotate.stages.encode import Encode
from pipeline.annotate.stages.fetch_decode import FetchDecode
from pipeline.annotate.stages.guard import InProcessGuard
from pipeline.annotate.stages.ordering import BatchOrder, read_in_order
from pipeline.annotate.stages.rows import WORKING_NAMES
from pipeline.annotate.stages.segment import Segment
from pipeline.annotate.stages.stage import Stage, StageCounts
from pipeline.annotations.pictures import PictureSource
from pipeline.annotations.schema import RESERVED_NAMES, output_schema
from pipeline.model.categories import Category
from pipeline.storage.uris import Uri
from pipeline.tables.packed import unpacked
from testing.stand_in_detector import stand_in
from tests.annotate.manifest.manifest_cases import write_parquet
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


class TestOrder:
    """The way of the job without Ray: whatever the manifest says of sizes, and in whatever order, rows are the same."""

    ORDER = BatchOrder(64, 96, batch_size=4, images_per_block=8)
    SIZES = ((40, 60), (60, 40), (50, 50), (64, 96), (20, 90))

    def work(self, folder: Path, sizes: str, seed: int) -> tuple[dict[str, dict[str, Any]], StageCounts]:
        """Rows by id, without their order; and what was counted."""
        names = [f"{i:02d}" for i in range(60)]
        pictures = [photo(*self.SIZES[i % len(self.SIZES)], seed=i) for i in range(len(names))]
        rng = np.random.default_rng(seed)
        order = rng.permutation(len(names))
        sides = np.array([pictures[i].shape[:2] for i in order])
        columns: dict[str, Any] = {"image_id": [names[i] for i in order], "of it": [int(i) for i in order]}
        columns["image_bytes"] = [b"broken" if i % 13 == 5 else encoded(pictures[i]) for i in order]
        if sizes != "none":
            known = rng.permutation(sides) if sizes == "wrong" else sides
            columns |= {"height": known[:, 0], "width": known[:, 1]}
        path = write_parquet(folder / f"{sizes}.parquet", columns, row_group_size=23)
        manifest = open_manifest(ManifestConfig(uri=path, carry=("of it",)), Uri(str(folder / "scratch")))
        reports: list[StageCounts] = []
        fetch_decode = FetchDecode(PictureSource(), self.ORDER, InProcessGuard(), reports.append)
        segment = Segment(stand_in(), 4, (0, 0, 0), InProcessGuard(), reports.append)
        encode = Encode(output_schema(pa.string(), manifest.carried), CATEGORIES, InProcessGuard(), discard)
        rows: list[dict[str, Any]] = []
        for task in graph._read_tasks(find_pending(manifest, [])):
            for part in read_in_order(task, manifest, self.ORDER, window_rows=40, rows_per_task=24):
                for table in fetch_decode(unpacked(part)):
                    rows += encode(segment(table)).to_pylist()
        assert len(rows) == len(names)
        return {row["image_id"]: row for row in rows}, sum(reports, StageCounts())

    def test_rows_are_the_same_in_any_order_with_any_sizes(self, tmp_path: Path) -> None:
        found = {(s, seed): self.work(tmp_path, s, seed) for s in ("none", "right", "wrong") for seed in (1, 2)}
        (first, _), *others = found.values()
        assert {i for i, row in first.items() if row["status"] == "failed"} == {f"{i:02d}" for i in range(5, 60, 13)}
        assert all(row["of it"] == int(i) for i, row in first.items())
        for rows, _ in others:
            assert rows == first
        assert {counts.batched for _, counts in found.values()} == {55}
        # At least 14 by fours; as they come, pictures of four shapes in blocks of eight take about twice as many.
        assert all(14 <= counts.batches <= 18 for _, counts in found.values())
