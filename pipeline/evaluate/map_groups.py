"""One group of images -> records on scratch storage, rows of the match table, and sums: the map of the evaluation.

Plain functions on picklable values; `measure` has them run as tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.evaluate.analysis import AnalysisPlan, block_metrics
from pipeline.evaluate.examples import ExamplePicker
from pipeline.evaluate.inputs.ground_truth import DealtTruth
from pipeline.evaluate.inputs.predictions import Predictions
from pipeline.evaluate.inputs.read_group import read_group
from pipeline.evaluate.shuffle.chunks import Chunk, ChunkStore
from pipeline.metrics.analysis.match_table import match_schema, match_table
from pipeline.metrics.analysis.tide import error_records
from pipeline.metrics.ap.records import block_records
from pipeline.metrics.blocks import DetectionBlock, TruthBlock
from pipeline.metrics.ious import block_overlaps
from pipeline.metrics.metric import ComparedBlock, Metric
from pipeline.metrics.protocol import CocoProtocol, IouType
from pipeline.metrics.streams import ERRORS_STREAM, RecordStream
from pipeline.storage.objects.base import ObjectFolder
from pipeline.storage.objects.open import open_objects


@dataclass(frozen=True)
class GroupPlan:
    """What the map does, the same for all groups. Picklable.

    Attributes:
        truth: dealt to the groups.
        predictions: the detections, read group by group.
        store: of the ground truth; records go there as well.
        iou_types: what is compared: masks, boxes or both.
        protocol: how many detections of an image count.
        analysis: ``None``: COCO's figures only.
    """

    truth: DealtTruth
    predictions: Predictions
    store: ChunkStore
    iou_types: tuple[IouType, ...]
    protocol: CocoProtocol
    analysis: AnalysisPlan | None

    @property
    def num_categories(self) -> int:
        """K, how many the ground truth has."""
        return len(self.truth.categories.ids)


class AnalysisSums:
    """What groups contribute to the analysis.

    Attributes:
        iou_type: what overlaps are of.
        errors: records that go into `ERRORS_STREAM`.
        metrics: those that are updated with blocks, by their sections of metrics.json.
        examples: worst and best images.
    """

    def __init__(self, plan: AnalysisPlan, num_categories: int) -> None:
        self.iou_type = plan.iou_type
        self.errors = RecordStream(ERRORS_STREAM, num_categories)
        self.metrics: dict[str, Metric] = block_metrics(plan, num_categories)
        self.examples = ExamplePicker(num_categories, plan.images_per_class, plan.settings.score_threshold)

    def update(self, block: ComparedBlock) -> None:
        """Take in a block."""
        self.errors.update(error_records(block))
        for metric in self.metrics.values():
            metric.update(block)
        self.examples.update(block)

    def write(self, objects: ObjectFolder, group: int) -> None:
        """Write what is too large to be sent home."""
        self.errors.write(objects, f"{ERRORS_STREAM}-{group:05d}.runs")
        self.examples.write(objects, f"examples-{group:05d}.json")

    def merge(self, other: AnalysisSums) -> None:
        """Take in what other groups contribute."""
        self.errors.merge(other.errors)
        for name, metric in self.metrics.items():
            metric.merge(other.metrics[name])
        self.examples.merge(other.examples)


class GroupSums:
    """What groups contribute: a task makes the sums of one group, and those of all are merged. Picklable.

    Attributes:
        num_images: images in the groups.
        num_detections: [K] detections that were compared.
        num_crowd: [K] objects that are crowd regions.
        streams: records, by what was compared.
        analysis: ``None`` where only COCO's figures are wanted.
    """

    def __init__(self, plan: GroupPlan) -> None:
        num = plan.num_categories
        self.num_images = 0
        self.num_detections, self.num_crowd = np.zeros(num, np.int64), np.zeros(num, np.int64)
        self.streams = {iou_type: RecordStream(iou_type, num) for iou_type in plan.iou_types}
        self.analysis = AnalysisSums(plan.analysis, num) if plan.analysis else None

    def count(self, truth: TruthBlock, detections: DetectionBlock) -> None:
        """Count what is in a block."""
        self.num_images += len(truth)
        self.num_detections += np.bincount(detections.categories, minlength=len(self.num_detections))
        self.num_crowd += np.bincount(truth.categories[truth.crowd], minlength=len(self.num_crowd))

    def write(self, objects: ObjectFolder, group: int) -> None:
        """Write what is too large to be sent home."""
        for iou_type, stream in self.streams.items():
            stream.write(objects, f"{iou_type}-{group:05d}.runs")
        if self.analysis:
            self.analysis.write(objects, group)

    def merge(self, other: GroupSums) -> None:
        """Take in what other groups contribute, by the same plan."""
        self.num_images += other.num_images
        self.num_detections += other.num_detections
        self.num_crowd += other.num_crowd
        for iou_type, stream in self.streams.items():
            stream.merge(other.streams[iou_type])
        if self.analysis and other.analysis:
            self.analysis.merge(other.analysis)


def evaluate_group(plan: GroupPlan, group: int, chunks: Sequence[Chunk]) -> GroupSums:
    """Compare all images of a group. Run again, it writes the same files again.

    Args:
        plan: the same for all groups.
        group: which one; it names the files.
        chunks: of its ground truth, see ``pairing.truth_chunks``.

    Raises:
        InputError, ValueError: something in the inputs that cannot be compared; it names the image.
    """
    sums, matches = GroupSums(plan), _MatchTable(plan.truth)
    for truth, detections in read_group(plan.truth, plan.predictions, plan.store, group, chunks):
        sums.count(truth, detections)
        for iou_type in plan.iou_types:
            analysis = sums.analysis if sums.analysis and sums.analysis.iou_type == iou_type else None
            overlaps = block_overlaps(truth, detections, iou_type, only_candidates=analysis is None)
            records = block_records(truth, detections, overlaps, iou_type, plan.num_categories, plan.protocol)
            sums.streams[iou_type].update(records)
            if analysis:
                block = ComparedBlock(truth, detections, overlaps, plan.num_categories)
                analysis.update(block)
                matches.add(block)
    sums.write(open_objects(plan.store.uri), group)
    if plan.analysis and sums.num_images:
        open_objects(plan.analysis.matches_uri).put(f"part-{group:05d}.parquet", matches.close())
    return sums


class _MatchTable:
    """The match table of a group as a file in memory, packed as it comes: a group has a million rows."""

    def __init__(self, truth: DealtTruth) -> None:
        self._categories, self._id_type = truth.categories, truth.id_type
        self._content = pa.BufferOutputStream()
        self._writer = pq.ParquetWriter(self._content, match_schema(self._id_type), compression="zstd")

    def add(self, block: ComparedBlock) -> None:
        ids, names = self._categories.ids, self._categories.names
        self._writer.write_table(match_table(block.truth, block.detections, block.judgement, ids, names, self._id_type))

    def close(self) -> pa.Buffer:
        """The file."""
        self._writer.close()
        return self._content.getvalue()
