"""Outputs of pictures that exist, to be drawn."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image
from pycocotools import mask as coco_mask

from pipeline.annotations.data_file import Identity
from pipeline.annotations.ledger import OutputStore
from pipeline.annotations.run_json import RunJson, RunState
from pipeline.annotations.schema import ANNOTATED, FAILED, ImageDetections, detections_array
from pipeline.config.images import ImagesConfig
from pipeline.storage.uris import Uri
from testing.output_rows import output_rows

CATEGORY_IDS, CATEGORY_NAMES = (3, 7), ("cat", "Äpfel")
IDENTITY = Identity("tiny", "a" * 64, "c" * 64, "{}", "0.1", "run-1")
SIZE = (60, 80)
GREY = 128


def two_objects() -> ImageDetections:
    """A cat of 20 x 30 pixels at (10, 5) with score 0.9, and an apple of 10 x 10 at (50, 40) with 0.3."""
    boxes = np.array([[10, 5, 20, 30], [50, 40, 10, 10]], np.float32)
    masks = np.zeros((*SIZE, 2), np.uint8, order="F")
    masks[5:35, 10:30, 0] = 1
    masks[40:50, 50:60, 1] = 1
    counts = [rle["counts"] for rle in coco_mask.encode(masks)]
    areas = np.array([600, 100], np.float32)
    return ImageDetections(boxes, np.array([0.9, 0.3], np.float32), np.array([0, 1]), areas, SIZE, counts)


def one_apple() -> ImageDetections:
    """Only the apple of `two_objects`."""
    both = two_objects()
    last = {name: getattr(both, name)[1:] for name in ("boxes", "scores", "labels", "areas", "counts")}
    return replace(both, **last)


def write_picture(path: Path) -> None:
    """Grey all over, of `SIZE`."""
    Image.fromarray(np.full((*SIZE, 3), GREY, np.uint8)).save(path)


def write_output(
    uri: Path,
    ids: Sequence[int] | Sequence[str],
    uris: Sequence[str | None],
    failed: Collection[int | str] = (),
    without_cat: Collection[int | str] = (),
    images: ImagesConfig | None = None,
    image_root: Uri | None = None,
) -> OutputStore:
    """One file of rows, added to what is there, and ``run.json``."""
    bad = [i in failed for i in ids]
    found = [
        None if is_bad else one_apple() if i in without_cat else two_objects()
        for i, is_bad in zip(ids, bad, strict=True)
    ]
    columns = [
        pa.array(ids),
        pa.array(uris, pa.string()),
        *(pa.array([None if is_bad else side for is_bad in bad], pa.int32()) for side in SIZE),
        pa.array([None] * len(bad), pa.int8()),
        pa.array([FAILED if is_bad else ANNOTATED for is_bad in bad]),
        detections_array(found, CATEGORY_IDS, CATEGORY_NAMES),
        *(pa.array([text if is_bad else None for is_bad in bad], pa.string()) for text in ("fetch", "not_found", "?")),
    ]
    store = OutputStore(Uri(str(uri)))
    store.write_rows(output_rows(columns), IDENTITY)
    config = {"images": (images or ImagesConfig()).model_dump(mode="json")}
    counts = {"cat": 3, "Äpfel": 3}
    run = RunJson(state=RunState.FINISHED, config=config, image_root=image_root, detections_per_category=counts)
    run.write(store.uri)
    return store
