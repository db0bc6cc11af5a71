"""Versions in the anti-join, against dicts."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.annotate.config import ManifestConfig
from pipeline.annotate.manifest.open import Manifest, open_manifest
from pipeline.annotate.pending.antijoin import Comparison, Pending, find_pending, rows_by_file
from pipeline.storage.uris import Uri

By = Literal["none", "etag", "size_mtime"]
Id = int | str
Version = tuple[str | None, int | None, int | None]  # ETag, size, microseconds

OWN = "run-now"
COMPARED = {"none": (), "etag": (0,), "size_mtime": (1, 2)}

versions = st.tuples(
    st.sampled_from([None, "a", "b"]), st.sampled_from([None, 1, 2]), st.sampled_from([None, 10, 20, 30])
)


@dataclass(frozen=True)
class Done:
    """A row of the output."""

    id: Id
    version: Version
    run_id: str | None
    is_deleted: bool


done_rows = st.builds(
    Done,
    st.none(),  # type: ignore[arg-type]
    versions,
    st.sampled_from([None, "run-before", OWN]),
    st.booleans(),
)


def manifest_of(folder: Path, listed: dict[Id, Version], rows_per_unit: int, is_live: bool) -> Manifest:
    etags, sizes, times = zip(*listed.values(), strict=True)
    is_int = isinstance(next(iter(listed)), int)
    columns = {
        "image_id": pa.array(list(listed), pa.int64() if is_int else pa.string()),
        "image_uri": pa.array(["/x"] * len(listed)),
        "etag": pa.array(etags, pa.string()),
        "size": pa.array(sizes, pa.int64()),
        "last_modified": pa.array(times, pa.timestamp("us", "UTC")),
    }
    path = folder / "manifest.parquet"
    pq.write_table(pa.table(columns), path, row_group_size=rows_per_unit)
    return replace(open_manifest(ManifestConfig(uri=str(path)), Uri(str(folder / "scratch"))), is_live=is_live)


def table_of(rows: list[Done], id_type: pa.DataType) -> pa.Table:
    etags, sizes, times = zip(*(row.version for row in rows), strict=True)
    return pa.table(
        {
            "image_id": pa.array([row.id for row in rows], id_type),
            "status": pa.array(["deleted" if row.is_deleted else "annotated" for row in rows]),
            "run_id": pa.array([row.run_id for row in rows], pa.string()),
            "object_etag": pa.array(etags, pa.string()),
            "object_size": pa.array(sizes, pa.int64()),
            "object_mtime": pa.array(times, pa.timestamp("us", "UTC")),
        }
    )


def judged(listed: Version, row: Done, by: By, is_live: bool) -> tuple[bool, bool]:
    """Whether the picture has changed, and whether that cannot be known."""
    pairs = [(listed[at], row.version[at]) for at in COMPARED[by]]
    known = [(one, other) for one, other in pairs if one is not None and other is not None]
    changed = any(one != other for one, other in known)
    before, read = listed[2], row.version[2]
    if not is_live and before is not None and read is not None and read > before:
        changed = False
    is_own = row.run_id == OWN
    unknown = by != "none" and not known and not is_own and not row.is_deleted
    return (changed and not is_own) or row.is_deleted, unknown


def ids_in(manifest: Manifest, pending: Pending) -> list[Any]:
    return [i for unit, rows in pending.units for i in manifest.read_ids(unit).take(pa.array(rows)).to_pylist()]


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.differing_executors])
@given(
    data=st.data(),
    kind=st.sampled_from([st.integers(-9, 40), st.text("ab/é", min_size=1, max_size=3)]),
    by=st.sampled_from(["none", "etag", "size_mtime"]),
    is_live=st.booleans(),
    memory_rows=st.sampled_from([1, 7, 10**6]),
)
def test_versions_against_dicts(
    data: st.DataObject, kind: st.SearchStrategy[Id], by: By, is_live: bool, memory_rows: int
) -> None:
    listed = data.draw(st.dictionaries(kind, versions, min_size=1, max_size=25), "manifest")
    # An id twice in the output is an error of its own: its books are not looked at here.
    ids = data.draw(st.lists(st.sampled_from(list(listed)) | kind, max_size=30, unique=True), "ids of the output")
    rows = [replace(data.draw(done_rows), id=i) for i in ids]
    lengths = data.draw(st.lists(st.integers(1, 9), min_size=len(rows), max_size=len(rows)), "rows of files")
    with tempfile.TemporaryDirectory() as folder:
        manifest = manifest_of(Path(folder), listed, data.draw(st.integers(1, 9)), is_live)
        files = []
        while waiting := rows[sum(map(len, files)) :]:
            files.append(waiting[: lengths[len(files)]])
        comparison = Comparison(by, OWN, is_live)
        tables = (table_of(file, manifest.id_type).select(list(comparison.columns)) for file in files)
        found = find_pending(manifest, tables, comparison=comparison, memory_rows=memory_rows, tmp_dir=folder)
        pending, changed = ids_in(manifest, found), ids_in(manifest, found.changed_alone())
        assert sorted(ids_in(manifest, found.all_to_do())) == sorted(pending + changed)
    there = {row.id: row for row in rows}
    verdicts = {i: judged(listed[i], row, by, is_live) for i, row in there.items() if i in listed}
    assert pending == [i for i in listed if i not in there]
    assert changed == [i for i in listed if i in there and verdicts[i][0]]
    assert (found.num_pending, found.num_changed) == (len(pending), len(changed))
    assert found.num_rows == len(listed) == found.num_done + found.num_pending + found.num_changed
    assert found.num_unknown == sum(unknown for _, unknown in verdicts.values())
    assert found.num_unlisted == sum(all(version[at] is None for at in COMPARED[by]) for version in listed.values())
    lacking = [row for row in rows if row.id not in listed]
    assert found.num_marked == sum(row.is_deleted for row in lacking)
    assert found.unknown_done.count == sum(not row.is_deleted for row in lacking)
    assert found.duplicate_done.count == 0
    is_gone = [row.id not in listed and not row.is_deleted for row in rows]
    assert found.gone is not None
    assert np.unpackbits(found.gone, count=len(rows)).astype(bool).tolist() == is_gone
    footers = {number: SimpleNamespace(counts=SimpleNamespace(rows=len(file))) for number, file in enumerate(files)}
    by_file = rows_by_file(SimpleNamespace(settled=footers), found.gone)  # type: ignore[arg-type]
    wanted = {}
    for number, file in enumerate(files):
        if any(flags := [row.id not in listed and not row.is_deleted for row in file]):
            wanted[number] = flags
    assert {number: flags.tolist() for number, flags in by_file.items()} == wanted
