"""Small tables of the output's schema, and where to put them."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence

import numpy as np
import pyarrow as pa

from pipeline.annotations.data_file import Identity
from pipeline.annotations.ledger import OutputStore
from pipeline.annotations.schema import ANNOTATED, FAILED, ImageDetections, detections_array
from testing.output_rows import output_rows

CATEGORY_IDS = (1, 2, 90)
CATEGORY_NAMES = ("person", "bicycle", "toothbrush")
IDENTITY = Identity("swin", "a" * 64, "c" * 64, json.dumps({"model": {"threshold": 0.05}}), "0.1", "run-1")


def image_detections(num_detections: int, seed: int = 0) -> ImageDetections:
    """Numbers that follow from the seed."""
    rng = np.random.default_rng(seed)
    return ImageDetections(
        boxes=(rng.random((num_detections, 4)) * 100).astype(np.float32),
        scores=np.sort(rng.random(num_detections))[::-1].astype(np.float32),
        labels=rng.integers(0, 3, num_detections),
        areas=rng.integers(1, 1000, num_detections).astype(np.float32),
        image_size=(480, 640),
        counts=[bytes(rng.integers(48, 112, 20, dtype=np.uint8)) for _ in range(num_detections)],
    )


def output_table(
    ids: Sequence[int] | Sequence[str], failed: Collection[int | str] = (), carried: pa.Table | None = None
) -> pa.Table:
    """A row per id; image number n (by position) has n modulo 4 detections."""
    bad = [i in failed for i in ids]
    found = [None if is_bad else image_detections(n % 4, n) for n, is_bad in enumerate(bad)]
    columns = [
        pa.array(ids),
        pa.array([f"s3://images/{i}.jpg" for i in ids]),
        pa.array([None if is_bad else 480 for is_bad in bad], pa.int32()),
        pa.array([None if is_bad else 640 for is_bad in bad], pa.int32()),
        pa.array([None] * len(bad), pa.int8()),
        pa.array([FAILED if is_bad else ANNOTATED for is_bad in bad]),
        detections_array(found, CATEGORY_IDS, CATEGORY_NAMES),
        *(pa.array([text if is_bad else None for is_bad in bad], pa.string()) for text in ("fetch", "not_found", "?")),
    ]
    return output_rows(columns, carried)


def all_ids(store: OutputStore) -> list[int | str]:
    """Every id in the output, sorted, as often as it is there."""
    return sorted(i for table in store.iter_ids(store.files().settled) for i in table["image_id"].to_pylist())
