"""The figures people quote, from the arrays: COCO's twelve, the printed summary, mmdet's names, one row a category.

And all from blocks to arrays in one process, for sets that fit into its memory.

Legend of the axes: T, R, K, A, M as in `protocol`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipeline.metrics.ap.accumulate import Accumulator, CategoryResult
from pipeline.metrics.ap.matching import NUM_THRESHOLDS
from pipeline.metrics.ap.records import BlockRecords, block_records, sort_order
from pipeline.metrics.blocks import DetectionBlock, TruthBlock
from pipeline.metrics.ious import block_overlaps
from pipeline.metrics.protocol import AREA_NAMES, IOU_THRESHOLDS, CocoProtocol, IouType
from pipeline.tables.arrays import Float64s


@dataclass(frozen=True)
class Arrays:
    """The arrays of ``COCOeval.eval``: -1 where a category has no objects of a range.

    Attributes:
        precision: [T, R, K, A, M] highest one from each recall on.
        recall: [T, K, A, M] of all detections.
        scores: [T, R, K, A, M] at which each recall is reached.
    """

    precision: Float64s
    recall: Float64s
    scores: Float64s

    @classmethod
    def stack(cls, results: Sequence[CategoryResult]) -> Arrays:
        """Join K categories.

        Raises:
            ValueError: there are none.
        """
        return cls(
            precision=np.stack([result.precision for result in results], axis=2),
            recall=np.stack([result.recall for result in results], axis=1),
            scores=np.stack([result.scores for result in results], axis=2),
        )


@dataclass(frozen=True)
class _Stat:
    """One of the twelve: a mean over part of the precision (AP) or recall (AR) array."""

    kind: Literal["AP", "AR"]
    limit: int  # position in max_dets
    range: int = 0
    iou: float | None = None

    def values(self, arrays: Arrays) -> Float64s:
        """The part, categories on the last axis: [T, R, K] or [T, K]."""
        values = (arrays.precision if self.kind == "AP" else arrays.recall)[..., self.range, self.limit]
        return values if self.iou is None else values[self.iou == IOU_THRESHOLDS]

    def name(self, max_dets: Sequence[int], mean: str = "", joint: str = "") -> str:
        """``AP``, ``AP50``, ``APs``, ``AR@100``, ``ARs@100``; with "m" and "_" mmdet's ``mAP_50``, ``AR_s@100``."""
        detail = AREA_NAMES[self.range][0] if self.range else "" if self.iou is None else f"{self.iou * 100:.0f}"
        detail = joint + detail if detail else ""
        return f"{mean}AP{detail}" if self.kind == "AP" else f"AR{detail}@{max_dets[self.limit]}"


def _stats(max_dets: Sequence[int]) -> tuple[_Stat, ...]:
    """In COCO's order."""
    sizes = range(1, len(AREA_NAMES))
    return (
        _Stat("AP", ap_limit(max_dets)),
        _Stat("AP", 2, iou=0.5),
        _Stat("AP", 2, iou=0.75),
        *(_Stat("AP", 2, range=size) for size in sizes),
        *(_Stat("AR", limit) for limit in range(3)),
        *(_Stat("AR", 2, range=size) for size in sizes),
    )


def ap_limit(max_dets: Sequence[int]) -> int:
    """COCOeval takes the first figure, AP, at 100 detections whatever the limits, and all others at the last one.

    So does this; but where 100 is not among the limits COCOeval's AP is -1, and here it is that of the last.
    """
    return list(max_dets).index(100) if 100 in max_dets else len(max_dets) - 1


def _mean(values: Float64s) -> float:
    """Over what is defined, -1 if nothing is. Flattened first as COCOeval does: the order of a sum is in its bits."""
    defined = values[values > -1]
    return float(np.mean(defined)) if defined.size else -1.0


def coco_stats(arrays: Arrays, max_dets: Sequence[int]) -> Float64s:
    """COCO's twelve figures, equal to the last bit to ``COCOeval.stats``.

    Args:
        arrays: of all K categories.
        max_dets: the three limits they were made with. AP is taken at 100 detections if that is one of them (as
            with mmdet's 100, 300, 1000), else at the largest, where COCOeval gives -1.

    Returns:
        [12] AP, AP at IoU 0.50, at 0.75, of small, medium, large objects; AR at each limit; AR of small, medium
        and large objects. -1 where there are no objects.
    """
    return np.array([_mean(stat.values(arrays)) for stat in _stats(max_dets)])


def stat_names(max_dets: Sequence[int]) -> list[str]:
    """Short names of `coco_stats`, ``AP`` to ``ARl@100``."""
    return [stat.name(max_dets) for stat in _stats(max_dets)]


def coco_summary_lines(stats: Float64s, max_dets: Sequence[int]) -> list[str]:
    """The lines that ``COCOeval.summarize`` prints; they are the same for boxes and masks.

    Args:
        stats: [12] as `coco_stats` gives them.
        max_dets: the limits; the first line names the one that AP was taken at.
    """
    lines = []
    for stat, value in zip(_stats(max_dets), stats.tolist(), strict=True):
        title = "Average Precision  (AP)" if stat.kind == "AP" else "Average Recall     (AR)"
        iou = f"{IOU_THRESHOLDS[0]:.2f}:{IOU_THRESHOLDS[-1]:.2f}" if stat.iou is None else f"{stat.iou:.2f}"
        limit = max_dets[stat.limit]
        lines.append(
            f" {title} @[ IoU={iou:<9} | area={AREA_NAMES[stat.range]:>6s} | maxDets={limit:>3d} ] = {value:0.3f}"
        )
    return lines


def mmdet_metrics(stats: Float64s, iou_type: IouType, max_dets: Sequence[int]) -> dict[str, float]:
    """The same figures under the names of mmdet's ``CocoMetric``, not rounded.

    Args:
        stats: [12] as `coco_stats` gives them.
        iou_type: the names begin with it: ``segm_mAP_50``, ``bbox_AR@1000``.
        max_dets: mmdet's names say 100, 300 and 1000; with other limits the names say those.
    """
    names = [f"{iou_type}_{stat.name(max_dets, mean='m', joint='_')}" for stat in _stats(max_dets)]
    return dict(zip(names, stats.tolist(), strict=True))


def per_class(arrays: Arrays, max_dets: Sequence[int]) -> list[dict[str, float | None]]:
    """The same figures for each category alone.

    Args:
        arrays: of all K categories.
        max_dets: the three limits they were made with.

    Returns:
        K rows in the order of the categories' ids: ``AP``, ``AP50``, ``AP75``, ``APs``, ``APm``, ``APl`` and
        ``AR``, the recall at the last limit; ``None`` where a category has no objects (of that size).
    """
    *six, _, _, recall = _stats(max_dets)[:9]
    columns = {stat.name(max_dets): stat for stat in six} | {"AR": recall}
    means = {name: [_mean(part) for part in np.moveaxis(stat.values(arrays), -1, 0)] for name, stat in columns.items()}
    return [
        {name: None if values[k] < 0 else values[k] for name, values in means.items()}
        for k in range(arrays.recall.shape[1])
    ]


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
        overlaps = block_overlaps(truth, detections, iou_type, only_candidates=True)
        parts.append(block_records(truth, detections, overlaps, iou_type, num_categories, protocol))
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
