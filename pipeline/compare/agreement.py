"""Objects on the images that both sides have: which are the same, which came, went, or are called otherwise.

An object of one side is the same as one of the other if they are of one class and their boxes overlap by an IoU of 0.5:
the best-scored detection of the later side takes the object that it overlaps most, as COCO matches. Of what is left,
pairs of such an overlap and different classes are *relabelled*; the rest is *gained* or *lost*.

And COCO's figures of the later side with the earlier one as the truth, by boxes and by masks. All detections count, not
the 100 best of a class on an image: else an image with more of them would not agree with itself. What has no area (an
empty mask, a box without width) overlaps nothing, itself neither, and is passed over.

Rows of both sides are dealt by a hash of their ids into files on disk, and compared a part at a time; records of the
detections lie beside them, sorted by class and score.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.annotations.rows import Row
from pipeline.annotations.schema import ANNOTATED
from pipeline.metrics.ap.accumulate import Accumulator
from pipeline.metrics.ap.figures import Arrays, per_class
from pipeline.metrics.ap.matching import NUM_THRESHOLDS
from pipeline.metrics.ap.records import block_records
from pipeline.metrics.ap.sorted_runs import merge_runs
from pipeline.metrics.blocks import Categories, DetectionBlock, TruthBlock
from pipeline.metrics.ious import block_overlaps
from pipeline.metrics.overlaps import Overlaps, Partners, match_in_order, score_positions
from pipeline.metrics.protocol import IOU_TYPES, CocoProtocol, IouType
from pipeline.metrics.rows import OutputBatch
from pipeline.metrics.streams import RecordStream, stream_dtype
from pipeline.storage.objects.open import open_objects
from pipeline.storage.uris import Uri
from pipeline.tables.arrays import Bools, Float64s, Int64s
from pipeline.tables.arrow_types import in_one_piece
from pipeline.tables.dealt import DealtRows
from pipeline.tables.ids import hash_ids, wide
from pipeline.tables.ragged import image_indices, offsets_of

_PICTURE = ("object_etag", "object_size")
COLUMNS = ("image_id", "image_uri", "status", "height", "width", "detections", *_PICTURE)
MIN_IOU = 0.5
MOST_SHOWN = 50
_PROTOCOL = CocoProtocol((1, 10, np.iinfo(np.uint16).max))
_ROWS_OF_PART = 1 << 15
_MOST_PARTS = 256  # files that are open at a time
_BLOCK_IMAGES = 256

Figures = dict[str, float | None]


class Disagreement(NamedTuple):
    """An image with objects that are not the same.

    Attributes:
        weight: by which images are ordered: the squares of these objects' scores, added up; of a relabelled one, of the
            higher of its two. So what comes and goes about the lowest score that is kept counts next to nothing.
        gained, lost, relabelled, matched: objects.
        before, after: its rows, with `COLUMNS`.
    """

    image_id: int | str
    weight: float
    gained: int
    lost: int
    relabelled: int
    matched: int
    before: Row
    after: Row


@dataclass
class Agreement:
    """Sums over the images of both sides; K categories.

    Attributes:
        categories: K.
        images: that both have annotated, of the same picture.
        only_before, only_after: images that one side has and the other has not.
        newly_failed, newly_annotated: images that failed on the later side alone, and on the earlier one alone.
        replaced: images that both have annotated, but of another picture, as its height and width say, or the ETag or
            the bytes of what was read at one URI: nothing on it is compared.
        identical: images with the same objects: all matched.
        matched, gained, lost: [K] objects; a matched one is of the same class on both sides.
        relabelled: [K, K] objects by their category before and after, where there are any.
        iou_sum: of matched objects.
        most_changed: the images that differ most, see `Disagreement.weight`.
        precision: COCO's figures of each category, see `pipeline.metrics.ap.figures.per_class`, by what is compared;
            undefined for categories of which the earlier side has no object.
    """

    categories: Categories
    images: int = 0
    only_before: int = 0
    only_after: int = 0
    newly_failed: int = 0
    newly_annotated: int = 0
    replaced: int = 0
    identical: int = 0
    relabelled: dict[tuple[int, int], int] = field(default_factory=dict)
    iou_sum: float = 0.0
    most_changed: list[Disagreement] = field(default_factory=list)
    precision: dict[IouType, list[Figures]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.matched, self.gained, self.lost = (np.zeros(len(self.categories.ids), np.int64) for _ in range(3))

    @property
    def mean_iou(self) -> float | None:
        """``None`` if nothing matched."""
        matched = int(self.matched.sum())
        return self.iou_sum / matched if matched else None

    @property
    def share(self) -> float | None:
        """Of all objects of both sides, those that match (Dice's coefficient); ``None`` without any."""
        matched = int(self.matched.sum())
        total = 2 * (matched + sum(self.relabelled.values())) + int(self.gained.sum() + self.lost.sum())
        return 2 * matched / total if total else None

    def mean_precision(self, iou_type: IouType) -> Figures:
        """Each figure's mean over the categories that have it: what COCO gives for all."""
        rows = self.precision[iou_type]
        found = {name: [row[name] for row in rows] for name in (rows[0] if rows else {})}
        defined = {name: [value for value in values if value is not None] for name, values in found.items()}
        return {name: sum(values) / len(values) if values else None for name, values in defined.items()}


class Tables(NamedTuple):
    """A side: its rows, and what it is called in messages."""

    place: str
    tables: Iterable[pa.Table]


def agree(before: Tables, after: Tables, categories: Categories, num_rows: int) -> Agreement:
    """Compare two sides.

    Args:
        before, after: tables of `COLUMNS`; no id twice.
        categories: all that occur.
        num_rows: of the larger side, about.

    Raises:
        InputError: a row with damaged numbers or masks.
    """
    found = Agreement(categories)
    num_parts = min(1 + num_rows // _ROWS_OF_PART, _MOST_PARTS)
    with tempfile.TemporaryDirectory(prefix="compare-") as folder:
        sides = [_dealt(Path(folder) / str(n), side.tables, num_parts) for n, side in enumerate((before, after))]
        records = _Records(Uri(folder) / "records", len(categories.ids))
        for part in range(num_parts):
            pair = _in_both(found, *(side.read(part) for side in sides))
            if pair is not None:
                for start in range(0, pair[0].num_rows, _BLOCK_IMAGES):
                    rows = [table.slice(start, _BLOCK_IMAGES) for table in pair]
                    _compare(found, records, _Side.of(before.place, rows[0]), _Side.of(after.place, rows[1]))
            records.write(part)
        found.precision = records.figures()
    return found


def _dealt(folder: Path, tables: Iterable[pa.Table], num_parts: int) -> DealtRows:
    folder.mkdir()
    with DealtRows(folder) as dealt:
        for table in tables:
            parts = hash_ids(wide(in_one_piece(table["image_id"]))) % np.uint64(num_parts)
            dealt.add(table, parts.astype(np.int64))
    return dealt


def _in_both(found: Agreement, before: pa.Table | None, after: pa.Table | None) -> tuple[pa.Table, pa.Table] | None:
    """The rows of images that both have annotated, in one order; the others are counted."""
    if before is None or after is None:
        found.only_before += 0 if before is None else before.num_rows
        found.only_after += 0 if after is None else after.num_rows
        return None
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
    same = ~_replaced(first, second)
    found.replaced += int(np.count_nonzero(~same))
    found.images += int(np.count_nonzero(same))
    return first.filter(pa.array(same)), second.filter(pa.array(same))


def _replaced(before: pa.Table, after: pa.Table) -> Bools:
    """[N] which images' pictures are others now. A copy at another URI may have another ETag, and be the same."""
    changed = pc.or_(*(pc.fill_null(pc.not_equal(before[name], after[name]), False) for name in _PICTURE))
    at_one_uri = pc.fill_null(pc.equal(before["image_uri"], after["image_uri"]), False)
    return pc.and_(changed, at_one_uri).to_numpy().astype(np.bool_) | (_sizes(before) != _sizes(after)).any(axis=1)


def _sizes(rows: pa.Table) -> Int64s:
    """[N, 2] height, width."""
    return np.stack([rows[name].to_numpy() for name in ("height", "width")], axis=1).astype(np.int64)


class _Side(NamedTuple):
    """Rows of one side, N images."""

    place: str
    rows: pa.Table
    ids: pa.Array

    @classmethod
    def of(cls, place: str, rows: pa.Table) -> _Side:
        return cls(place, rows, wide(in_one_piece(rows["image_id"])))

    def block(self, categories: Categories) -> DetectionBlock:
        """Its detections with their masks."""
        batch = OutputBatch(self.place, self.ids, in_one_piece(self.rows["detections"]))
        return batch.block(np.arange(len(self.ids)), _sizes(self.rows), categories, masks=True)

    def truth(self, found: DetectionBlock) -> TruthBlock:
        """Detections on its images as the truth."""
        assert found.rles is not None
        return TruthBlock(
            image_ids=self.ids.to_pylist(),
            # Any fixed order of the images decides between equal scores; with numbers it can be COCO's own.
            orders=self.ids.to_numpy() if pa.types.is_integer(self.ids.type) else hash_ids(self.ids).view(np.int64),
            image_sizes=_sizes(self.rows),
            offsets=found.offsets,
            ids=np.arange(1, len(found.scores) + 1),
            categories=found.categories,
            boxes=found.boxes,
            areas=found.rles.areas.astype(np.float64),
            crowd=np.zeros(len(found.scores), np.bool_),
            rles=found.rles,
        )


class _Records:
    """Records of all detections on scratch storage, by what is compared."""

    def __init__(self, uri: Uri, num_categories: int) -> None:
        self._objects = open_objects(uri)
        self._num_categories = num_categories
        self._streams = {iou_type: RecordStream(iou_type, num_categories) for iou_type in IOU_TYPES}

    def add(self, truth: TruthBlock, found: DetectionBlock, overlaps: Overlaps, iou_type: IouType) -> None:
        """Match the detections of a block as COCO does."""
        self._streams[iou_type].update(block_records(truth, found, overlaps, iou_type, self._num_categories, _PROTOCOL))

    def write(self, part: int) -> None:
        """Let go what is in memory."""
        for iou_type, stream in self._streams.items():
            stream.write(self._objects, f"{iou_type}-{part:05d}.runs")

    def figures(self) -> dict[IouType, list[Figures]]:
        """Of each category, one in memory at a time."""
        return {
            iou_type: [self._category(iou_type, stream, k) for k in range(self._num_categories)]
            for iou_type, stream in self._streams.items()
        }

    def _category(self, iou_type: IouType, stream: RecordStream, k: int) -> Figures:
        accumulator = Accumulator(stream.num_objects[k], NUM_THRESHOLDS, _PROTOCOL.max_dets)
        for records in merge_runs(self._objects, stream.runs[k], stream_dtype(iou_type)):
            accumulator.update(records)
        return per_class(Arrays.stack([accumulator.result()]), _PROTOCOL.max_dets)[0]


def _compare(found: Agreement, records: _Records, before: _Side, after: _Side) -> None:
    blocks = [side.block(found.categories) for side in (before, after)]
    boxes = [_with_area(each, "bbox") for each in blocks]
    truth = before.truth(boxes[0])
    overlaps = block_overlaps(truth, boxes[1], "bbox", only_candidates=False)
    records.add(truth, boxes[1], overlaps, "bbox")
    _pair(found, boxes, overlaps, before, after)
    masks = [_with_area(each, "segm") for each in blocks]
    truth = before.truth(masks[0])
    records.add(truth, masks[1], block_overlaps(truth, masks[1], "segm", only_candidates=True), "segm")


def _with_area(block: DetectionBlock, iou_type: IouType) -> DetectionBlock:
    assert block.rles is not None
    kept = (block.boxes[:, 2:] > 0).all(axis=1) if iou_type == "bbox" else block.rles.areas > 0
    if kept.all():
        return block
    at = np.flatnonzero(kept)
    return replace(
        block,
        offsets=offsets_of(np.bincount(image_indices(block.offsets)[at], minlength=len(block))),
        positions=block.positions[at],
        categories=block.categories[at],
        boxes=block.boxes[at],
        scores=block.scores[at],
        rles=block.rles.take(at),
    )


def _pair(found: Agreement, blocks: list[DetectionBlock], overlaps: Overlaps, before: _Side, after: _Side) -> None:
    """Count what became of the objects of a block, and remember the images that differ most."""
    old, new = blocks
    near = overlaps.take(overlaps.ious >= MIN_IOU)
    near = near.take(np.lexsort((near.objects, -near.ious, score_positions(new)[near.detections])))
    same = new.categories[near.detections] == old.categories[near.objects]
    matched = match_in_order(near.take(same), len(new.scores), len(old.scores))
    lost, gained = _left(matched, np.ones(len(old.scores), np.bool_), np.ones(len(new.scores), np.bool_))
    rest = near.take(~same & gained[near.detections] & lost[near.objects])
    renamed = match_in_order(rest, len(new.scores), len(old.scores))
    lost, gained = _left(renamed, lost, gained)

    num = len(found.categories.ids)
    found.matched += np.bincount(new.categories[matched.present], minlength=num)
    found.gained += np.bincount(new.categories[gained], minlength=num)
    found.lost += np.bincount(old.categories[lost], minlength=num)
    pairs = zip(old.categories[renamed.objects[renamed.present]], new.categories[renamed.present], strict=True)
    for a, b in pairs:
        found.relabelled[int(a), int(b)] = found.relabelled.get((int(a), int(b)), 0) + 1
    found.iou_sum += float(matched.ious.sum())

    images = [image_indices(each.offsets) for each in blocks]
    higher = np.maximum(new.scores[renamed.present], old.scores[renamed.objects[renamed.present]])
    parts = [
        (images[1][gained], new.scores[gained]),
        (images[0][lost], old.scores[lost]),
        (images[1][renamed.present], higher),
        (images[1][matched.present], np.zeros(np.count_nonzero(matched.present))),
    ]
    counts = np.stack([np.bincount(at, minlength=len(new)) for at, _ in parts], axis=1)
    weights = np.sum([np.bincount(at, scores**2, len(new)) for at, scores in parts], axis=0)
    found.identical += int(np.count_nonzero(counts[:, :3].sum(axis=1) == 0))
    _remember(found, counts, weights, before, after)


def _left(partners: Partners, objects: Bools, detections: Bools) -> tuple[Bools, Bools]:
    """Objects and detections that have no partner either."""
    objects = objects.copy()
    objects[partners.objects[partners.present]] = False
    return objects, detections & ~partners.present


def _remember(found: Agreement, counts: Int64s, weights: Float64s, before: _Side, after: _Side) -> None:
    """Keep the rows of the images that are among those that differ most so far.

    Args:
        counts: [N, 4] gained, lost, relabelled, matched.
        weights: [N].
    """
    known = found.most_changed
    least = known[-1].weight if len(known) == MOST_SHOWN else 0.0
    places = np.flatnonzero((counts[:, :3].sum(axis=1) > 0) & (weights >= least))
    names = after.ids.take(pa.array(places)).to_pylist()
    new: list[tuple[float, int | str, Disagreement | int]] = [
        (-float(weights[at]), name, int(at)) for at, name in zip(places, names, strict=True)
    ]
    ordered = sorted([*((-each.weight, each.image_id, each) for each in known), *new], key=lambda item: item[:2])

    def kept(weight: float, image_id: int | str, item: Disagreement | int) -> Disagreement:
        if isinstance(item, Disagreement):
            return item
        rows = [side.rows.slice(item, 1).to_pylist()[0] for side in (before, after)]
        return Disagreement(image_id, weight, *counts[item].tolist(), *rows)

    found.most_changed = [kept(-negated, name, item) for negated, name, item in ordered[:MOST_SHOWN]]
