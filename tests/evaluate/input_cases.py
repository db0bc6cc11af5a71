"""COCO sets on disk, in each form that the evaluation reads, and the stages that read them, one after the other."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from pipeline.annotations.data_file import Identity
from pipeline.annotations.ledger import OutputStore
from pipeline.annotations.schema import ANNOTATED, FAILED, ImageDetections, detections_array
from pipeline.evaluate.inputs.books import InputReport, WhichImages
from pipeline.evaluate.inputs.ground_truth import DealtTruth, deal_truth
from pipeline.evaluate.inputs.pairing import check_sides, pair_part, truth_chunks
from pipeline.evaluate.inputs.predictions import Predictions, group_ranges, list_images
from pipeline.evaluate.inputs.read_group import read_group
from pipeline.evaluate.shuffle.chunks import ChunkStore
from pipeline.metrics.blocks import DetectionBlock, TruthBlock
from pipeline.storage.uris import Uri
from testing.output_rows import output_rows as made_rows

Json = dict[str, Any]

IDENTITY = Identity("swin", "a" * 64, "c" * 64, "{}", "0.1", "run-1")


class Read(NamedTuple):
    """What the stages make of a set."""

    truth: DealtTruth
    report: InputReport
    blocks: list[tuple[TruthBlock, DetectionBlock]]


def write_json(path: Path, content: Any) -> str:
    path.write_text(json.dumps(content))
    return str(path)


def write_output(
    uri: str,
    dataset: Json,
    results: Sequence[Json],
    names: Mapping[int, str],
    failed: Collection[Any] = (),
    rows_per_file: int = 3,
) -> OutputStore:
    """The results as annotate would have written them: float32 numbers, in the order in which they are given."""
    store = OutputStore(Uri(uri))
    images = dataset["images"]
    for start in range(0, len(images), rows_per_file):
        store.write_rows(output_rows(images[start : start + rows_per_file], results, names, failed), IDENTITY)
    return store


def output_rows(
    images: Sequence[Json], results: Sequence[Json], names: Mapping[int, str], failed: Collection[Any] = ()
) -> pa.Table:
    """A row per image, with the results on it."""
    ids = [image["id"] for image in images]
    bad = [id_ in failed for id_ in ids]
    own = [[row for row in results if row["image_id"] == id_] for id_ in ids]
    labels = {id_: label for label, id_ in enumerate(names)}
    found = [
        None if is_bad else _detections(image, rows, labels)
        for image, rows, is_bad in zip(images, own, bad, strict=True)
    ]
    columns = [
        pa.array(ids),
        pa.array([f"s3://images/{id_}.jpg" for id_ in ids]),
        pa.array([image["height"] for image in images], pa.int32()),
        pa.array([image["width"] for image in images], pa.int32()),
        pa.array([1] * len(ids), pa.int8()),
        pa.array([FAILED if is_bad else ANNOTATED for is_bad in bad]),
        detections_array(found, list(names), list(names.values())),
        *(pa.array(["?" if is_bad else None for is_bad in bad], pa.string()) for _ in range(3)),
    ]
    return made_rows(columns)


def _detections(image: Json, rows: Sequence[Json], labels: Mapping[int, int]) -> ImageDetections:
    return ImageDetections(
        boxes=np.array([row["bbox"] for row in rows], np.float32).reshape(-1, 4),
        scores=np.array([row["score"] for row in rows], np.float32),
        labels=np.array([labels[row["category_id"]] for row in rows], np.int64),
        areas=np.array([row.get("area", 1) for row in rows], np.float32),
        image_size=(image["height"], image["width"]),
        counts=[row["segmentation"]["counts"].encode() for row in rows],
    )


def read_all(
    truth_uri: str, predictions: Predictions, folder: str, masks: bool = True, images: WhichImages = "all"
) -> Read:
    """All stages in this process; no blocks where there are problems."""
    store = ChunkStore(Uri(folder))
    truth = deal_truth(Uri(truth_uri), store, masks)
    listed = [list_images(predictions, groups, store, truth.num_parts) for groups in group_ranges(predictions)]
    report = check_sides(truth, predictions, listed, images)
    groups = predictions.num_groups
    paired = [pair_part(truth, listed, store, part, groups, images) for part in range(truth.num_parts)]
    report = sum((part.report for part in paired), report)
    blocks = [
        block
        for group in range(0 if report.problems() else groups)
        for block in read_group(truth, predictions, store, group, truth_chunks(paired, group))
    ]
    return Read(truth, report, blocks)


def image_ids(blocks: Sequence[tuple[TruthBlock, DetectionBlock]]) -> Iterator[Any]:
    """Of all blocks, in their order."""
    return (id_ for truth, _ in blocks for id_ in truth.image_ids)
