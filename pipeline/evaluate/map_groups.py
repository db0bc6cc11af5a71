"""One group of images -> records on scratch storage, rows of the match table, and sums: the map of the evaluation.

Plain functions on picklable values; `measure` has them run as tasks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.evaluate.examples import example_of
from pipeline.evaluate.inputs.ground_truth import DealtTruth
from pipeline.evaluate.inputs.predictions import Predictions
from pipeline.evaluate.inputs.read_group import read_group
from pipeline.evaluate.shuffle.chunks import Chunk, ChunkStore
from pipeline.evaluate.shuffle.sorted_runs import ERRORS_STREAM, SortedRun, write_runs
from pipeline.metrics.analysis.confusion import block_confusion
from pipeline.metrics.analysis.image_quality import block_qualities
from pipeline.metrics.analysis.match_table import match_schema, match_table
from pipeline.metrics.analysis.tide import ErrorTotals, block_errors
from pipeline.metrics.analysis.top_images import TopImages
from pipeline.metrics.ap.records import Records, block_records
from pipeline.metrics.blocks import DetectionBlock, TruthBlock
from pipeline.metrics.ious import block_ious
from pipeline.metrics.protocol import AREA_NAMES, CocoProtocol, IouType
from pipeline.storage.objects.open import open_objects
from pipeline.tables.arrays import Float64s, Int64s


@dataclass(frozen=True)
class AnalysisPlan:
    """What is worked out beyond AP.

    Attributes:
        iou_type: what overlaps are of.
        score_threshold: of the confusion matrix and of the images' qualities.
        images_per_class: worst and best images to keep of each category.
        matches_uri: folder of the match table.
    """

    iou_type: IouType
    score_threshold: float
    images_per_class: int
    matches_uri: str


@dataclass(frozen=True)
class GroupPlan:
    """What the map does, the same for all groups. Picklable.

    Attributes:
        truth: dealt to the groups.
        predictions: in groups.
        store: of the ground truth; records go there as well.
        iou_types: what is compared.
        protocol: the limits.
        analysis: ``None``: COCO's figures only.
    """

    truth: DealtTruth
    predictions: Predictions
    store: ChunkStore
    iou_types: tuple[IouType, ...]
    protocol: CocoProtocol
    analysis: AnalysisPlan | None


@dataclass(frozen=True)
class AnalysisSums:
    """What a group contributes to the analysis.

    Attributes:
        errors: kinds of errors; ``None`` for a group without images.
        confusion: [K + 1, K + 1].
        top: worst and best images.
        examples: those images, by their order: where they lie on scratch storage, see `pipeline.evaluate.examples`.
    """

    errors: ErrorTotals | None
    confusion: Int64s
    top: TopImages
    examples: Mapping[int, Chunk]


@dataclass(frozen=True)
class GroupResult:
    """What a group contributes.

    Attributes:
        num_images: in the group.
        num_detections: [K] that were compared.
        num_crowd: [K] objects that are crowd regions.
        num_objects: [K, A] objects that count, by what was compared.
        runs: for each stream of records, the run of each category.
        analysis: ``None`` without.
    """

    num_images: int
    num_detections: Int64s
    num_crowd: Int64s
    num_objects: Mapping[IouType, Int64s]
    runs: Mapping[str, Mapping[int, SortedRun]]
    analysis: AnalysisSums | None


def evaluate_group(plan: GroupPlan, group: int, chunks: Sequence[Chunk]) -> GroupResult:
    """Compare all images of a group. Run again, it writes the same files again.

    Args:
        plan: see there.
        group: its number.
        chunks: of its ground truth, see ``pairing.truth_chunks``.

    Raises:
        InputError, ValueError: something in the inputs that cannot be compared; it names the image.
    """
    return _Group(plan, group).run(read_group(plan.truth, plan.predictions, plan.store, group, chunks))


class _Group:
    """A group's sums so far."""

    def __init__(self, plan: GroupPlan, group: int) -> None:
        self._plan, self._group = plan, group
        self._num_categories = num = len(plan.truth.categories.ids)
        self._num_images = 0
        self._num_detections, self._num_crowd = np.zeros(num, np.int64), np.zeros(num, np.int64)
        self._num_objects = {kind: np.zeros((num, len(AREA_NAMES)), np.int64) for kind in plan.iou_types}
        self._streams: dict[str, list[tuple[Int64s, Records]]] = {}
        self._analysis = _Analysis(plan, plan.analysis, group) if plan.analysis else None

    def run(self, blocks: Iterator[tuple[TruthBlock, DetectionBlock]]) -> GroupResult:
        """Go through the blocks, then write."""
        for truth, detections in blocks:
            self._num_images += len(truth)
            self._num_detections += np.bincount(detections.categories, minlength=self._num_categories)
            self._num_crowd += np.bincount(truth.categories[truth.crowd], minlength=self._num_categories)
            for iou_type in self._plan.iou_types:
                self._compare(truth, detections, iou_type)
        return GroupResult(
            num_images=self._num_images,
            num_detections=self._num_detections,
            num_crowd=self._num_crowd,
            num_objects=self._num_objects,
            runs={stream: self._write_runs(stream) for stream in self._streams},
            analysis=self._analysis.close() if self._analysis else None,
        )

    def _compare(self, truth: TruthBlock, detections: DetectionBlock, iou_type: IouType) -> None:
        plan = self._plan
        analysis = self._analysis if plan.analysis and plan.analysis.iou_type == iou_type else None
        ious = block_ious(truth, detections, iou_type, same_category_only=analysis is None)
        made = block_records(truth, detections, ious, iou_type, self._num_categories, plan.protocol)
        self._num_objects[iou_type] += made.num_objects
        self._streams.setdefault(iou_type, []).append((made.categories, made.records))
        if analysis:
            self._streams.setdefault(ERRORS_STREAM, []).append(analysis.add(truth, detections, ious))

    def _write_runs(self, stream: str) -> dict[int, SortedRun]:
        categories, records = (np.concatenate(parts) for parts in zip(*self._streams[stream], strict=True))
        objects = open_objects(self._plan.store.uri)
        return write_runs(objects, f"{stream}-{self._group:05d}.runs", categories, records)


class _Analysis:
    """The part of a group's sums that is not AP."""

    def __init__(self, plan: GroupPlan, analysis: AnalysisPlan, group: int) -> None:
        self._analysis, self._categories, self._store = analysis, plan.truth.categories, plan.store
        self._group = group
        self._num_categories = num = len(self._categories.ids)
        self._id_type = plan.truth.id_type
        self._confusion = np.zeros((num + 1, num + 1), np.int64)
        self._errors: ErrorTotals | None = None
        self._top = TopImages(analysis.images_per_class)
        self._examples: dict[int, bytes] = {}
        # Packed as it comes: a group has a million rows.
        self._matches = pa.BufferOutputStream()
        self._writer = pq.ParquetWriter(self._matches, match_schema(self._id_type), compression="zstd")

    def add(self, truth: TruthBlock, detections: DetectionBlock, ious: Sequence[Float64s]) -> tuple[Int64s, Records]:
        """Take in a block; the records of its errors, and their categories."""
        num, least = self._num_categories, self._analysis.score_threshold
        errors = block_errors(truth, detections, ious, num)
        self._errors = self._errors + errors.totals if self._errors else errors.totals
        self._confusion += block_confusion(truth, detections, ious, num, least)
        ids, names = self._categories.ids, self._categories.names
        self._writer.write_table(match_table(truth, detections, errors.judgement, ids, names, self._id_type))
        self._top.update(block_qualities(truth, detections, errors.judgement, num, least))
        self._keep_examples(truth, detections)
        return errors.categories, errors.records

    def close(self) -> AnalysisSums:
        """Write the match table of the group, if it has rows, and its worst and best images."""
        self._writer.close()
        if self._errors is not None:
            name = f"part-{self._group:05d}.parquet"
            open_objects(self._analysis.matches_uri).put(name, self._matches.getvalue())
        return AnalysisSums(self._errors, self._confusion, self._top, self._write_examples())

    def _keep_examples(self, truth: TruthBlock, detections: DetectionBlock) -> None:
        """Those of images that are among the worst or best so far, and only those."""
        wanted = self._top.image_orders()
        kept = {order: example for order, example in self._examples.items() if order in wanted}
        for image, order in enumerate(truth.orders.tolist()):
            if order in wanted:
                kept[order] = example_of(truth, detections, image, self._analysis.score_threshold).encode()
        self._examples = kept

    def _write_examples(self) -> dict[int, Chunk]:
        if not self._examples:
            return {}
        name = f"examples-{self._group:05d}.json"
        open_objects(self._store.uri).put(name, b"".join(self._examples.values()))
        stops = accumulate(map(len, self._examples.values()))
        lengths = zip(self._examples.items(), stops, strict=True)
        return {order: Chunk(name, stop - len(example), stop) for (order, example), stop in lengths}
