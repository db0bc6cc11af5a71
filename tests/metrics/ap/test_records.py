from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from pipeline.metrics.ap.records import RECORD, BlockRecords, block_records, record_dtype, scored_hits, sort_order
from pipeline.metrics.ious import block_overlaps
from pipeline.metrics.protocol import AREA_NAMES, IOU_TYPES, CocoProtocol, IouType
from tests.evaluate.coco_cases import CocoCase, blocks_of, random_case, run_pycocotools
from tests.metrics.record_cases import records_of

BITS = 1 << np.arange(10)


def all_records(
    case: CocoCase, iou_type: IouType, protocol: CocoProtocol, images_per_block: int = 2000
) -> list[BlockRecords]:
    num_categories = len(case.dataset["categories"])
    return [
        block_records(truth, found, block_overlaps(truth, found, iou_type, True), iou_type, num_categories, protocol)
        for truth, found in blocks_of(*case, iou_type, images_per_block)
    ]


def joined(parts: list[BlockRecords]) -> list[Any]:
    """Every record with its category, in an order that depends on nothing else."""
    rows = [(k, *row) for part in parts for k, row in zip(part.categories.tolist(), part.records.tolist(), strict=True)]
    return sorted(tuple(map(str, row)) for row in rows)


def bits(flags: np.ndarray) -> list[int]:
    """[T, D] -> the bits of each detection."""
    return (flags.astype(np.int64).T @ BITS).tolist()


@pytest.mark.parametrize("iou_type", IOU_TYPES)
@pytest.mark.parametrize("seed", range(6))
def test_equals_evaluate_img_of_pycocotools(iou_type, seed):
    case = random_case(seed, max_detections=60, max_objects=12)
    protocol = CocoProtocol((1, 5, 20))
    evaluation = run_pycocotools(*case, iou_type, protocol.max_dets)
    (part,) = all_records(case, iou_type, protocol)
    num_categories, num_images = len(case.dataset["categories"]), len(case.dataset["images"])
    cells = np.array(evaluation.evalImgs, object).reshape(num_categories, len(AREA_NAMES), num_images)
    for (k, a, order), cell in np.ndenumerate(cells):
        own = part.records[(part.categories == k) & (part.records["image"] == order)]
        if cell is None:
            assert len(own) == 0
            continue
        matched, ignored = cell["dtMatches"] > 0, cell["dtIgnore"].astype(bool)
        assert own["score"].tolist() == cell["dtScores"]
        assert own["rank"].tolist() == list(range(len(own)))
        assert own["tp"][:, a].tolist() == bits(matched & ~ignored)
        assert own["fp"][:, a].tolist() == bits(~matched & ~ignored)
    counts = [[sum(int((c["gtIgnore"] == 0).sum()) for c in row if c) for row in category] for category in cells]
    assert part.num_objects.tolist() == counts


@pytest.mark.parametrize("images_per_block", [1, 3])
def test_blocks_add_up(images_per_block):
    case = random_case(3, num_images=20)
    whole, parts = (all_records(case, "segm", CocoProtocol(), n) for n in (2000, images_per_block))
    assert joined(parts) == joined(whole)
    np.testing.assert_array_equal(sum(part.num_objects for part in parts), whole[0].num_objects)


@pytest.mark.parametrize("iou_type", IOU_TYPES)
def test_pairs_of_other_categories_may_hold_anything(iou_type):
    ((truth, found),) = blocks_of(*random_case(1), iou_type)
    by_call = [
        block_records(truth, found, block_overlaps(truth, found, iou_type, same), iou_type, 4, CocoProtocol())
        for same in (True, False)
    ]
    assert by_call[0].records.tobytes() == by_call[1].records.tobytes()


def test_sort_order_is_descending_score_then_image_then_rank():
    rows = [(0.9, 5, 0), (0.5, 1, 0), (0.5, 1, 1), (0.5, 3, 0), (0.0, 2, 1), (0.0, 4, 0), (-1.0, 0, 0)]
    records = np.zeros(len(rows), RECORD)
    for name, column in zip(("score", "image", "rank"), zip(*rows, strict=True), strict=True):
        records[name] = column
    mixed = records[np.random.default_rng(0).permutation(len(rows))]
    mixed["score"][mixed["image"] == 4] = -0.0  # a tie with 0.0
    assert mixed[sort_order(mixed)][["score", "image", "rank"]].tolist() == rows


def test_negative_zero_becomes_zero():
    ((truth, found),) = blocks_of(*random_case(1), "bbox")
    found = dataclasses.replace(found, scores=np.full_like(found.scores, -0.0))
    overlaps = block_overlaps(truth, found, "bbox", True)
    part = block_records(truth, found, overlaps, "bbox", 4, CocoProtocol())
    assert len(part.records)
    assert not np.signbit(part.records["score"]).any()


def test_no_images():
    dataset = {"images": [{"id": 1, "height": 3, "width": 3}], "annotations": [], "categories": [{"id": 1}]}
    ((truth, found),) = blocks_of(dataset, [], "bbox")
    truth, found = (dataclasses.replace(block, offsets=block.offsets[:1]) for block in (truth, found))
    part = block_records(truth, found, block_overlaps(truth, found, "bbox", True), "bbox", 1, CocoProtocol())
    assert (len(part.records), part.num_objects.tolist()) == (0, [[0] * 4])


def test_areas_of_masks_are_needed_for_masks():
    ((truth, found),) = blocks_of(*random_case(1), "bbox")
    with pytest.raises(ValueError, match="have none"):
        block_records(truth, found, block_overlaps(truth, found, "bbox", True), "segm", 4, CocoProtocol())


def test_records_are_packed():
    assert RECORD.itemsize == 8 + 8 + 2 + 2 * 4 + 2 * 4
    assert record_dtype(4) == RECORD
    assert record_dtype(9)["tp"].shape == (9,)


def test_hits_without_ignored_detections() -> None:
    scores, hits = scored_hits(records_of([(0.9, "t"), (0.8, "i"), (0.7, "f"), (0.6, "t")]))
    assert scores.tolist() == [0.9, 0.7, 0.6]
    assert hits.tolist() == [True, False, True]


def test_hits_of_no_records() -> None:
    scores, hits = scored_hits(records_of([]))
    assert len(scores) == len(hits) == 0
