"""Failed rows have null as detections, in files of earlier releases an empty list; to all jobs it is the same."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from pipeline.annotations.class_thresholds import Selection
from pipeline.annotations.ledger import OutputStore
from pipeline.annotations.rows import OutputRows
from pipeline.annotations.run_json import RunJson, RunState
from pipeline.annotations.schema import FAILED
from pipeline.evaluate.inputs.annotations import open_annotated_output
from pipeline.export.formats.coco import write_coco, write_coco_results
from pipeline.storage.uris import Uri
from pipeline.train.data.pseudo_labels import ScoreBands, read_pseudo_labels
from tests.export.export_cases import CATEGORIES, IDENTITY, Picture, labels_of, table_of

FILES = [
    [Picture(1, None), Picture(2, [np.ones((30, 40), bool)]), Picture(3, None)],
    [Picture(4, None), Picture(5, []), Picture(6, [np.ones((20, 20), bool), np.ones((20, 20), bool)])],
    [Picture(7, None)],
]


def as_before(table: pa.Table) -> pa.Table:
    """As earlier releases wrote it."""
    lists = pc.fill_null(table["detections"], pa.scalar([], table.schema.field("detections").type))
    return table.set_column(table.column_names.index("detections"), table.schema.field("detections"), lists)


def write(folder: Path, before: set[int]) -> Uri:
    store = OutputStore(Uri(str(folder)))
    for number, pictures in enumerate(FILES):
        table = table_of(pictures)
        store.write_rows(as_before(table) if number in before else table, IDENTITY)
    RunJson(state=RunState.FINISHED, categories=CATEGORIES).write(store.uri)
    return store.uri


@pytest.mark.parametrize("before", [set(), {1}, {0, 1, 2}], ids=["now", "both", "before"])
def test_all_jobs_read_both(tmp_path: Path, before: set[int]) -> None:
    uri, now = write(tmp_path / "some", before), write(tmp_path / "now", set())

    store = OutputStore(uri)
    store.files().check_identity(IDENTITY, table_of(FILES[0]).schema)  # so a run may go on with it
    assert (store.files().counts.annotated, store.files().counts.failed) == (3, 4)
    assert sum(store.files().counts.detections_by_category.values()) == 3

    for writer in (write_coco, write_coco_results):
        files = io.BytesIO(), io.BytesIO()
        for file, output in zip(files, (uri, now), strict=True):
            writer(labels_of(output), file)
        one, other = (file.getvalue().replace(str(o).encode(), b"") for file, o in zip(files, (uri, now), strict=True))
        assert one == other

    bands = ScoreBands(Selection(0.1), Selection(0.1))
    images, report = read_pseudo_labels(uri, bands, CATEGORIES)
    assert sorted((image.image_id, len(image.counts)) for image in images) == [(2, 1), (5, 0), (6, 2)]
    assert (report.failed, report.objects) == (4, 3)

    (listed, counts) = open_annotated_output(uri).list_group(0)
    assert sorted(listed.filter(listed["failed"])["image_id"].to_pylist()) == [1, 3, 4, 7]
    assert sum(counts.values()) == 3
    for batch in open_annotated_output(uri).read_group(0, masks=True):
        lengths = dict(
            zip(batch.image_ids.to_pylist(), pc.list_value_length(batch.detections).to_pylist(), strict=True)
        )
        assert {image_id for image_id, length in lengths.items() if length} <= {2, 6}

    rows = OutputRows(uri)
    assert sorted(row["image_id"] for row in rows.annotated()) == [2, 5, 6]
    assert {row["status"] for row in rows.by_id(["1", "4", "7"])} == {FAILED}

    assert store.strip_failed(lambda: None) == 4
    assert (store.files().counts.annotated, store.files().counts.failed) == (3, 0)
