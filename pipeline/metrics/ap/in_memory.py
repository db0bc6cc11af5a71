"""The whole evaluation in one process: for sets that fit into its memory."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from pipeline.metrics.ap.accumulate import Accumulator, CategoryResult
from pipeline.metrics.ap.figures import Arrays
from pipeline.metrics.ap.matching import NUM_THRESHOLDS
from pipeline.metrics.ap.records import BlockRecords, block_records, sort_order
from pipeline.metrics.blocks import DetectionBlock, TruthBlock
from pipeline.metrics.ious import block_ious
from pipeline.metrics.protocol import CocoProtocol, IouType


def evaluate_blocks(
    blocks: Iterable[tuple[TruthBlock, DetectionBlock]], iou_type: IouType, num_categories: int, protocol: CocoProtocol
) -> Arrays:
    """What ``COCOeval`` has in ``eval`` after ``accumulate``.

    Keeps 34 bytes for each detection; the blocks themselves are let go.

    Args:
        blocks: every image in one of them.
        iou_type: compare boxes or masks.
        num_categories: K, of the ground truth.
        protocol: how many detections count.

    Raises:
        ValueError: no blocks, no categories, or masks that do not fit their images.
    """
    parts: list[BlockRecords] = []
    for truth, detections in blocks:
        ious = block_ious(truth, detections, iou_type, same_category_only=True)
        parts.append(block_records(truth, detections, ious, iou_type, num_categories, protocol))
    return Arrays.stack(_reduce(parts, num_categories, protocol))


def _reduce(parts: list[BlockRecords], num_categories: int, protocol: CocoProtocol) -> list[CategoryResult]:
    categories = np.concatenate([part.categories for part in parts])
    by_category = np.argsort(categories, kind="stable")
    records = np.concatenate([part.records for part in parts])[by_category]
    ends = np.searchsorted(categories[by_category], np.arange(num_categories + 1))
    num_objects = np.sum([part.num_objects for part in parts], axis=0)
    results = []
    for k in range(num_categories):
        accumulator = Accumulator(num_objects[k], NUM_THRESHOLDS, protocol.max_dets)
        own = records[ends[k] : ends[k + 1]]
        accumulator.update(own[sort_order(own)])
        results.append(accumulator.result())
    return results
