"""The match table: a row for everything, and nothing in it that is not in the blocks."""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from hypothesis import example, given, settings

from pipeline.metrics.analysis.match_table import match_schema, match_table
from pipeline.metrics.analysis.outcomes import judge
from pipeline.metrics.blocks import DetectionBlock, TruthBlock
from tests.metrics.block_cases import Case, Image, block, random_images, with_string_ids

IDS, NAMES = [10, 20, 30], ["person", "dog", "<b>"]


def _table(case: Case, id_type: pa.DataType | None = None) -> pa.Table:
    truth, found, overlaps = case
    judgement = judge(truth, found, overlaps)
    return match_table(truth, found, judgement, IDS, NAMES, id_type or pa.int64())


def test_every_kind_of_row() -> None:
    detections = [(0, 0.9), (0, 0.8), (2, 0.7), (0, 0.6), (1, 0.5), (1, 0.4)]
    ious = [(0.9, 0, 0, 0), (0.6, 0, 0, 0), (0, 0.8, 0, 0), (0.05, 0, 0, 0), (0, 0, 0.7, 0), (0, 0, 0, 0)]
    table = _table(block(Image(), Image([0, 1, 1, 1], detections, ious, crowd=[2]), Image([2])))
    rows = table.drop_columns(["bbox", "category_name"]).to_pylist()
    assert [tuple(row.values()) for row in rows] == [
        (1001, 0, 1, 10, 0.9, "true_positive", 0.9),
        (1001, 1, 1, 10, 0.8, "duplicate", 0.6),
        (1001, 2, 2, 30, 0.7, "classification", 0.8),
        (1001, 3, 1, 10, 0.6, "background", 0.05),
        (1001, 4, 3, 20, 0.5, "ignored", 0.7),
        (1001, 5, None, 20, 0.4, "background", None),
        (1001, None, 4, 20, None, "missed", None),
        (1002, None, 5, 30, None, "missed", None),
    ]
    assert table["category_name"].to_pylist() == ["person", "person", "<b>", "person", "dog", "dog", "dog", "<b>"]
    assert table["bbox"].to_pylist()[5:] == [[1020, 1021, 1022, 1023], [12, 13, 14, 15], [16, 17, 18, 19]]


def test_image_ids_of_text() -> None:
    truth, found, overlaps = block(Image([0]), Image(found=[(0, 0.5)], ious=[()]))
    table = _table((with_string_ids(truth), found, overlaps), pa.string())
    assert table["image_id"].to_pylist() == ["image 1000", "image 1001"]
    assert table.schema == match_schema(pa.string())


def test_nothing_has_the_schema_too() -> None:
    for images in ([], [Image()]):
        table = _table(block(*images))
        assert table.num_rows == 0
        assert table.schema == match_schema(pa.int64())


def test_parquet_gives_it_back() -> None:
    table = _table(block(Image([0, 1], [(0, 0.9)], [(0.9, 0)])))
    file = io.BytesIO()
    pq.write_table(table, file)
    assert pq.read_table(file).equals(table)


@settings(max_examples=60, deadline=None)
@given(random_images())
@example([Image([0, 1, 0], [(0, 0.5)], [(0.0, 0.5, 0.6)], crowd=[0, 2])])
def test_a_row_for_everything(images: list[Image]) -> None:
    truth, found, overlaps = block(*images)
    table = _table((truth, found, overlaps))
    _check_detections(table, truth, found)
    missed = table.filter(pc.equal(table["outcome"], "missed"))
    assert missed["detection"].null_count == missed["score"].null_count == missed["iou"].null_count == len(missed)
    named = {n for n in table["annotation_id"].to_pylist() if n is not None}
    assert named >= set(truth.ids[~truth.crowd].tolist())
    parts = [_table(block(image, first_order=n)) for n, image in enumerate(images)]
    outcomes = [row for part in parts for row in part["outcome"].to_pylist()]
    assert outcomes == table["outcome"].to_pylist()


def _check_detections(table: pa.Table, truth: TruthBlock, found: DetectionBlock) -> None:
    rows = table.filter(pc.is_valid(table["detection"]))
    assert rows["detection"].to_pylist() == found.positions.tolist()
    assert rows["score"].to_pylist() == found.scores.tolist()
    assert rows["bbox"].to_pylist() == found.boxes.tolist()
    assert rows["category_id"].to_pylist() == [IDS[c] for c in found.categories]
    assert set(table["image_id"].to_pylist()) <= set(truth.image_ids)
