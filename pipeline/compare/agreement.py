"""Objects on the images that both sides have: which are the same, which came, went, or are called otherwise.

An object of one side is the same as one of the other if they are of one class and their boxes overlap by an IoU of 0.5:
the best-scored detection of the later side takes the object that it overlaps most, as COCO matches. Of what is left,
pairs of such an overlap and different classes are *relabelled*; the rest is *gained* or *lost*.

Rows of both sides are dealt by a hash of their ids into files on disk, and matched a partition at a time.
"""

from __future__ import annotations

import heapq
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from pipeline.annotations.schema import ANNOTATED
from pipeline.tables.arrow_types import in_one_piece
from pipeline.tables.dealt import DealtRows
from pipeline.tables.ids import hash_ids, wide

COLUMNS = (
    "image_id",
    "status",
    "detections.list.element.bbox",
    "detections.list.element.score",
    "detections.list.element.category_id",
)
MIN_IOU = 0.5
_PARTITIONS = 64
_MOST_SHOWN = 50

Floats = NDArray[np.float64]
Int64Array = NDArray[np.int64]


@dataclass
class Agreement:
    """Sums over the images of both sides.

    Attributes:
        images: that both have annotated.
        only_before, only_after: images that one side has and the other has not.
        newly_failed, newly_annotated: images that failed on the later side alone, and on the earlier one alone.
        identical: images with the same objects: all matched.
        matched, gained, lost: objects by category id; the later side's, but for those that were lost.
        relabelled: objects by category id before and after.
        mean_iou: of matched objects.
        most_changed: (objects that are not matched, id) of the images with the most of them.
    """

    images: int = 0
    only_before: int = 0
    only_after: int = 0
    newly_failed: int = 0
    newly_annotated: int = 0
    identical: int = 0
    matched: dict[int, int] = field(default_factory=dict)
    gained: dict[int, int] = field(default_factory=dict)
    lost: dict[int, int] = field(default_factory=dict)
    relabelled: dict[tuple[int, int], int] = field(default_factory=dict)
    iou_sum: float = 0.0
    most_changed: list[tuple[int, str]] = field(default_factory=list)

    @property
    def mean_iou(self) -> float | None:
        """``None`` if nothing matched."""
        matched = sum(self.matched.values())
        return self.iou_sum / matched if matched else None

    @property
    def share(self) -> float | None:
        """Of all objects of both sides, those that match (Dice's coefficient); ``None`` without any."""
        matched, relabelled = sum(self.matched.values()), sum(self.relabelled.values())
        total = 2 * (matched + relabelled) + sum(self.gained.values()) + sum(self.lost.values())
        return 2 * matched / total if total else None


def agree(before: Iterable[pa.Table], after: Iterable[pa.Table]) -> Agreement:
    """Compare two sides.

    Args:
        before, after: tables of `COLUMNS`; no id twice.
    """
    found = Agreement()
    with tempfile.TemporaryDirectory(prefix="compare-") as folder:
        sides = [_dealt(Path(folder) / name, tables) for name, tables in (("before", before), ("after", after))]
        for partition in range(_PARTITIONS):
            _add(found, *(side.read(partition) for side in sides))
    found.most_changed.sort(key=lambda pair: (-pair[0], pair[1]))
    return found


def _dealt(folder: Path, tables: Iterable[pa.Table]) -> DealtRows:
    folder.mkdir()
    with DealtRows(folder) as dealt:
        for table in tables:
            partitions = hash_ids(wide(in_one_piece(table["image_id"]))) % np.uint64(_PARTITIONS)
            dealt.add(table, partitions.astype(np.int64))
    return dealt


def _add(found: Agreement, before: pa.Table | None, after: pa.Table | None) -> None:
    if before is None or after is None:
        found.only_before += 0 if before is None else before.num_rows
        found.only_after += 0 if after is None else after.num_rows
        return
    ids = [wide(in_one_piece(side["image_id"])) for side in (before, after)]
    other = pc.index_in(ids[1], value_set=ids[0])
    found.only_after += other.null_count
    found.only_before += before.num_rows - (after.num_rows - other.null_count)
    at = np.flatnonzero(other.is_valid().to_numpy(zero_copy_only=False))
    first, second = before.take(other.drop_null()), after.take(pa.array(at))
    good = [pc.equal(side["status"], ANNOTATED).to_numpy() for side in (first, second)]
    found.newly_failed += int(np.count_nonzero(good[0] & ~good[1]))
    found.newly_annotated += int(np.count_nonzero(~good[0] & good[1]))
    both = pa.array(good[0] & good[1])
    first, second = first.filter(both), second.filter(both)
    found.images += first.num_rows
    names = first["image_id"].to_pylist()
    for name, left, right in zip(names, _images(first), _images(second), strict=True):
        _match(found, str(name), left, right)


@dataclass(frozen=True)
class _Objects:
    boxes: Floats
    labels: Int64Array


def _images(rows: pa.Table) -> Iterator[_Objects]:
    """Of each row its objects, best score first."""
    lists = in_one_piece(rows["detections"])
    counts = pc.list_value_length(lists).fill_null(0).to_numpy(zero_copy_only=False)
    values = lists.flatten()
    boxes = values.field("bbox").flatten().to_numpy(zero_copy_only=False).reshape(-1, 4).astype(np.float64)
    labels = values.field("category_id").to_numpy(zero_copy_only=False).astype(np.int64)
    start = 0
    for count in counts.tolist():
        yield _Objects(boxes[start : start + count], labels[start : start + count])
        start += count


def _match(found: Agreement, name: str, before: _Objects, after: _Objects) -> None:
    num_relabelled = 0
    free_before, free_after = np.ones(len(before.labels), np.bool_), np.ones(len(after.labels), np.bool_)
    if len(before.labels) and len(after.labels):
        ious = np.asarray(
            coco_mask.iou(after.boxes, before.boxes, np.zeros(len(before.labels), np.uint8)), np.float64
        ).reshape(len(after.labels), len(before.labels))
        same = after.labels[:, None] == before.labels[None, :]
        for i, k, iou in _greedy(np.where(same, ious, 0.0), free_after, free_before):
            _count(found.matched, int(after.labels[i]))
            found.iou_sum += iou
            free_after[i] = free_before[k] = False
        for i, k, _ in _greedy(np.where(same, 0.0, ious), free_after, free_before):
            _count(found.relabelled, (int(before.labels[k]), int(after.labels[i])))
            num_relabelled += 1
            free_after[i] = free_before[k] = False
    for label in before.labels[free_before].tolist():
        _count(found.lost, label)
    for label in after.labels[free_after].tolist():
        _count(found.gained, label)
    changed = num_relabelled + int(np.count_nonzero(free_before)) + int(np.count_nonzero(free_after))
    if not changed:
        found.identical += 1
        return
    heapq.heappush(found.most_changed, (changed, name))
    if len(found.most_changed) > _MOST_SHOWN:
        heapq.heappop(found.most_changed)


def _greedy(
    ious: Floats, free_rows: NDArray[np.bool_], free_columns: NDArray[np.bool_]
) -> list[tuple[int, int, float]]:
    """Each row in turn takes the free column that it overlaps most, by at least `MIN_IOU`."""
    pairs = []
    columns = free_columns.copy()
    for row in np.flatnonzero(free_rows & (ious.max(axis=1, initial=0.0) >= MIN_IOU)).tolist():
        masked = np.where(columns, ious[row], 0.0)
        column = int(masked.argmax())
        if masked[column] >= MIN_IOU:
            pairs.append((row, column, float(masked[column])))
            columns[column] = False
    return pairs


def _count(counts: dict[Any, int], key: Any) -> None:
    counts[key] = counts.get(key, 0) + 1
