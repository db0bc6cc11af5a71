"""Soft masks to the output's rows: what pycocotools reads back, and the schema."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pycocotools import mask as coco_mask

from pipeline.annotate.stages.encode import Encode, mask_areas
from pipeline.annotate.stages.guard import InProcessGuard
from pipeline.annotate.stages.rows import error_arrays
from pipeline.annotate.stages.stage import StageCounts
from pipeline.annotations.data_file import Counts
from pipeline.annotations.failure import ImageFailure
from pipeline.annotations.schema import OBJECT_COLUMNS, check_output_schema, output_schema
from pipeline.model.categories import Category
from pipeline.model.detections import DETECTION_ARRAYS, Detections
from pipeline.tables.binary import binary_array

CATEGORIES = (Category(3, "cat"), Category(90, "Äpfel"))
NO_CARRIED = pa.schema([])
CARRIED = pa.schema([("split", pa.string()), ("tags", pa.list_(pa.int64()))])


def some(count: int, size: tuple[int, int] = (40, 60), seed: int = 0) -> Detections:
    """Blobs in boxes, some of which cross the picture's border."""
    rng = np.random.default_rng(seed)
    corners = rng.uniform(-0.1, 0.6, (count, 2)) * size[::-1]
    boxes = np.concatenate([corners, corners + rng.uniform(5, 40, (count, 2))], axis=1).astype(np.float32)
    y, x = np.mgrid[-1:1:28j, -1:1:28j]
    masks = np.exp(-(x**2 + y**2)[None] * rng.uniform(0.5, 3, (count, 1, 1))).astype(np.float32)
    scores = np.sort(rng.random(count))[::-1].astype(np.float32)
    return Detections(boxes, scores, rng.integers(0, 2, count), masks, size)


def segmented_rows(
    images: Sequence[Detections | ImageFailure],
    sizes: Sequence[tuple[int | None, int | None]] | None = None,
    **carried: Any,
) -> pa.Table:
    """Rows as segment makes them, carried columns in between and in their own order."""
    found = [image if isinstance(image, Detections) else None for image in images]
    sizes = sizes or [(None, None) if image is None else image.image_size for image in found]
    columns: dict[str, Any] = {
        "image_id": pa.array([f"id {i}" for i in range(len(images))], pa.string()),
        "image_uri": pa.array([f"s3://bucket/{i}.png" for i in range(len(images))], pa.string()),
        **carried,
        "height": pa.array([height for height, _ in sizes], pa.int32()),
        "width": pa.array([width for _, width in sizes], pa.int32()),
        "exif_orientation": pa.array([None if image is None else 6 for image in found], pa.int8()),
        **{field.name: pa.nulls(len(images), field.type) for field in OBJECT_COLUMNS},
    }
    errors = [image if isinstance(image, ImageFailure) else None for image in images]
    columns |= dict(zip(("stage", "error_code", "error_message"), error_arrays(errors), strict=True))
    for name, dtype in DETECTION_ARRAYS.items():
        columns[name] = binary_array([None if d is None else getattr(d, name).astype(dtype) for d in found])
    return pa.table(columns)


def encode(rows: pa.Table, carried: pa.Schema = NO_CARRIED) -> pa.Table:
    table = Encode(output_schema(pa.string(), carried), CATEGORIES, InProcessGuard(), lambda counts: None)(rows)
    table.validate(full=True)
    check_output_schema(table.schema)
    return table


ERROR = ImageFailure("fetch", "not_found", "gone")
CASES: dict[str, list[Detections | ImageFailure]] = {
    "two images": [some(3), some(2, (25, 33), 1)],
    "nothing found": [some(0), some(0)],
    "some with nothing": [some(2), some(0), some(1, seed=4)],
    "failed between": [some(2), ERROR, some(1)],
    "all failed": [ERROR, ImageFailure("decode", "corrupt_image", "cut")],
    "no rows": [],
}


@pytest.mark.parametrize("images", CASES.values(), ids=CASES)
def test_rows(images: list[Detections | ImageFailure]) -> None:
    table = encode(segmented_rows(images))
    assert table.schema.equals(output_schema(pa.string()))
    assert len(table) == len(images)
    for row, image in zip(table.to_pylist(), images, strict=True):
        if isinstance(image, ImageFailure):
            assert (row["status"], row["detections"]) == ("failed", None)
            assert (row["stage"], row["error_code"], row["error_message"]) == (image.stage, image.code, image.message)
            assert (row["height"], row["width"], row["exif_orientation"]) == (None, None, None)
            continue
        assert (row["status"], row["stage"], row["error_code"], row["error_message"]) == ("annotated", None, None, None)
        assert ((row["height"], row["width"]), row["exif_orientation"]) == (image.image_size, 6)
        rles = image.rle()
        assert len(row["detections"]) == len(image) == len(rles)
        for i, detection in enumerate(row["detections"]):
            x0, y0, x1, y1 = image.boxes[i]
            assert detection["bbox"] == [x0, y0, np.float32(x1 - x0), np.float32(y1 - y0)]
            assert detection["score"] == image.scores[i]
            category = CATEGORIES[image.labels[i]]
            assert (detection["category_id"], detection["category_name"]) == (category.id, category.name)
            assert detection["segmentation"] == {"size": list(rles[i]["size"]), "counts": rles[i]["counts"].decode()}
            mask = coco_mask.decode(
                {**detection["segmentation"], "counts": detection["segmentation"]["counts"].encode()}
            )
            assert mask.shape == image.image_size
            assert detection["area"] == mask.sum() > 0
            assert mask[max(0, int(y0)) : int(y1) + 2, max(0, int(x0)) : int(x1) + 2].sum() == mask.sum()


def test_carried_columns_in_the_schema_s_order() -> None:
    carried = {"tags": [[1], None, []], "split": ["a", None, "b"], "extra": [1, 2, 3]}
    table = encode(segmented_rows([some(1), ERROR, some(0)], **carried), CARRIED)
    assert table.schema.equals(output_schema(pa.string(), CARRIED))
    assert table["split"].to_pylist() == ["a", None, "b"]
    assert table["tags"].to_pylist() == [[1], None, []]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_masks_that_are_not_finite_fail_their_own_image(value: float) -> None:
    bad = some(2, seed=7)
    bad.masks[1, 3, 4] = value
    images = [some(1), bad, some(2, seed=3)]
    table = encode(segmented_rows(images))
    assert table["status"].to_pylist() == ["annotated", "failed", "annotated"]
    row = table.to_pylist()[1]
    assert (row["stage"], row["error_code"], row["detections"]) == ("encode", "bad_mask", None)
    assert "finite" in row["error_message"]
    assert (row["height"], row["width"]) == (40, 60)  # it was decoded, after all
    good = encode(segmented_rows([images[0], images[0], images[2]]))
    for i in (0, 2):
        assert table["detections"][i].as_py() == good["detections"][i].as_py()


def test_slices_and_chunks() -> None:
    images = [some(2), ERROR, some(0), some(3, seed=5), some(1, seed=6)]
    rows, whole = segmented_rows(images), encode(segmented_rows(images))
    assert encode(rows.slice(1, 3)).to_pylist() == whole.slice(1, 3).to_pylist()
    assert encode(pa.concat_tables([rows.slice(0, 2), rows.slice(2)])).to_pylist() == whole.to_pylist()


def test_report() -> None:
    reports: list[StageCounts] = []
    bad = some(2)
    bad.masks[0] = np.nan
    images = [some(3), ERROR, some(0), bad, ERROR, some(1)]
    Encode(output_schema(pa.string()), CATEGORIES, InProcessGuard(), reports.append)(segmented_rows(images))
    (counts,) = reports
    assert counts.encode_s > 0
    failed = Counter({"bad_mask": 1})  # the others were counted before
    first = counts.first_failed
    assert counts == StageCounts(encode_s=counts.encode_s, encoded=6, detections=4, failed=failed, first_failed=first)
    assert [line.split(": ")[:2] for line in first] == [[segmented_rows(images)["image_id"].to_pylist()[3], "bad_mask"]]


def test_the_footer_counts_what_was_encoded() -> None:
    counts = Counts.of(encode(segmented_rows([some(3), ERROR, some(2, seed=1)])))
    assert (counts.annotated, counts.failed, counts.failures_by_code) == (2, 1, {"not_found": 1})
    assert sum(counts.detections_by_category.values()) == 5


def test_mask_areas() -> None:
    masks = np.zeros((2, 20, 30), np.uint8)
    masks[0, 3:7, 5:10] = 1
    rles = [coco_mask.encode(np.asfortranarray(mask)) for mask in masks]
    areas = mask_areas(rles)
    assert areas.dtype == np.float32
    assert areas.tolist() == [20.0, 0.0]
    assert mask_areas([]).shape == (0,)


def test_more_masks_than_pycocotools_counts_in_one_call() -> None:
    """It holds the number of masks of a list in 8 bits."""
    rle = coco_mask.encode(np.asfortranarray(np.ones((3, 4), np.uint8)))
    assert mask_areas([rle] * 300).tolist() == [12.0] * 300


def test_an_image_that_killed_processes_is_refused() -> None:
    """As the stages before do it; a failed row is not in flight."""
    rows, guard = segmented_rows([some(1), ERROR, some(2), some(1)]), InProcessGuard()
    guard.begin("encode", ["id 1", "id 2"])
    guard.retry("encode", "id 2")
    out = Encode(output_schema(pa.string()), CATEGORIES, guard, lambda counts: None)(rows)
    assert out["error_code"].to_pylist() == [None, "not_found", "process_killed", None]
    assert out["stage"].to_pylist() == [None, "fetch", "encode", None]
    assert guard.begin("encode", ["id 0", "id 3"]) == [0, 0]
