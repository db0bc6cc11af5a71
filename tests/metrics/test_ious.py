from __future__ import annotations

import dataclasses
import re
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from pipeline.masks.rle import Rle, RleColumn
from pipeline.metrics.blocks import DetectionBlock, TruthBlock
from pipeline.metrics.ious import block_overlaps
from pipeline.metrics.overlaps import Overlaps
from pipeline.metrics.protocol import IOU_TYPES, IouType
from tests.evaluate.coco_cases import blocks_of, random_case


def one_block(seed: int, iou_type: IouType) -> tuple[TruthBlock, DetectionBlock]:
    (block,) = blocks_of(*random_case(seed, num_images=12), iou_type)
    return block


def one_image(truth_boxes: Any, found_boxes: Any, crowd: Any) -> tuple[TruthBlock, DetectionBlock]:
    """Boxes of one category on a 40 x 50 image, with masks that fill them."""
    truth, found = np.array(truth_boxes, np.float64), np.array(found_boxes, np.float64)
    dataset = {
        "images": [{"id": 7, "height": 40, "width": 50}],
        "categories": [{"id": 3}],
        "annotations": [
            {"id": n + 1, "image_id": 7, "category_id": 3, "area": 1.0, "iscrowd": c, **outlined(box)}
            for n, (box, c) in enumerate(zip(truth.tolist(), crowd, strict=True))
        ],
    }
    results = [{"image_id": 7, "category_id": 3, "score": 0.5, **outlined(box)} for box in found.tolist()]
    return blocks_of(dataset, results, "segm")[0]


def outlined(box: list[float]) -> dict[str, Any]:
    return {"bbox": box, "segmentation": coco_mask.frPyObjects(np.array([box]), 40, 50)[0]}


def matrices(truth: TruthBlock, found: DetectionBlock, overlaps: Overlaps) -> list[NDArray[np.float64]]:
    """Of each image [D, G], 0 where there is no overlap."""
    every = np.zeros((len(found.scores), len(truth.ids)))
    every[overlaps.detections, overlaps.objects] = overlaps.ious
    images = zip(pairwise(found.offsets.tolist()), pairwise(truth.offsets.tolist()), strict=True)
    return [every[start:stop, first:last] for (start, stop), (first, last) in images]


def by_pycocotools(truth: TruthBlock, found: DetectionBlock, iou_type: IouType) -> list[NDArray[np.float64]]:
    """Of each image, all its detections and objects in one call."""
    expected = []
    for image in range(len(truth)):
        objects, detections = slice(*truth.offsets[image : image + 2]), slice(*found.offsets[image : image + 2])
        if iou_type == "bbox":
            sides = found.boxes[detections].tolist(), truth.boxes[objects].tolist()
        else:
            assert found.rles is not None
            assert truth.rles is not None
            sides = found.rles[detections], truth.rles[objects]
        ious = coco_mask.iou(*sides, truth.crowd[objects].tolist())
        expected.append(np.reshape(ious, (len(sides[0]), len(sides[1]))))
    return expected


def assert_listed(truth: TruthBlock, found: DetectionBlock, iou_type: IouType) -> None:
    """All pairs above 0, and the candidates of AP alone, are those of pycocotools, in order."""
    expected = by_pycocotools(truth, found, iou_type)
    for only_candidates in (False, True):
        overlaps = block_overlaps(truth, found, iou_type, only_candidates)
        assert (overlaps.ious > 0).all()
        order = np.lexsort((overlaps.objects, overlaps.detections))
        np.testing.assert_array_equal(order, np.arange(len(order)))
        same = found.categories[:, None] == truth.categories
        for image, (got, wanted) in enumerate(zip(matrices(truth, found, overlaps), expected, strict=True)):
            objects, detections = slice(*truth.offsets[image : image + 2]), slice(*found.offsets[image : image + 2])
            kept = same[detections, objects] & (wanted >= 0.5)
            np.testing.assert_array_equal(got, np.where(kept, wanted, 0.0) if only_candidates else wanted)


@pytest.mark.parametrize("iou_type", IOU_TYPES)
def test_by_hand(iou_type):
    truth, found = one_image(
        [[0, 0, 10, 10], [0, 0, 20, 20], [30, 30, 5, 5]], [[0, 0, 10, 10], [5, 0, 10, 10]], [0, 1, 0]
    )
    overlaps = block_overlaps(truth, found, iou_type, only_candidates=False)
    # The second object is a crowd: intersection over the detection, which lies within it.
    assert matrices(truth, found, overlaps)[0].tolist() == [[1.0, 1.0, 0.0], [1 / 3, 1.0, 0.0]]
    overlaps = block_overlaps(truth, found, iou_type, only_candidates=True)
    assert matrices(truth, found, overlaps)[0].tolist() == [[1.0, 1.0, 0.0], [0.0, 1.0, 0.0]]


@pytest.mark.parametrize("iou_type", IOU_TYPES)
@pytest.mark.parametrize("seed", range(5))
def test_every_pair_equals_pycocotools(iou_type, seed):
    assert_listed(*one_block(seed, iou_type), iou_type)


SIZE = (6, 7)
RUNS = st.lists(st.integers(0, 12), min_size=1, max_size=12)


@st.composite
def masks(draw: st.DrawFn) -> Rle:
    """Of 6 x 7 pixels, empty ones and such with empty runs in any place among them."""
    ends = np.minimum(np.cumsum(draw(RUNS)), SIZE[0] * SIZE[1])
    runs = np.diff([0, *ends.tolist(), SIZE[0] * SIZE[1]]).tolist()
    return coco_mask.frPyObjects({"size": list(SIZE), "counts": runs}, *SIZE)


@st.composite
def mask_blocks(draw: st.DrawFn) -> tuple[TruthBlock, DetectionBlock]:
    """Up to three images with masks of two categories, crowds among them, some objects twice."""
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image in range(draw(st.integers(1, 3))):
        known = draw(st.lists(masks(), max_size=4))
        found = draw(st.lists(masks() | st.sampled_from(known) if known else masks(), max_size=5))
        for side, rles in ((annotations, known), (results, found)):
            for rle in rles:
                category, crowd = draw(st.tuples(st.integers(1, 2), st.integers(0, 1)))
                item = {"id": len(side) + 1, "image_id": image, "category_id": category, "iscrowd": crowd}
                side.append({**item, "area": 1.0, "score": 0.5, "bbox": [0.0] * 4, "segmentation": rle})
    images = [{"id": image, "height": SIZE[0], "width": SIZE[1]} for image in range(3)]
    dataset = {"images": images, "categories": [{"id": 1}, {"id": 2}], "annotations": annotations}
    return blocks_of(dataset, results, "segm")[0]


@settings(max_examples=150, deadline=None)
@given(mask_blocks())
def test_any_masks_as_pycocotools_compares_them(blocks: tuple[TruthBlock, DetectionBlock]) -> None:
    assert_listed(*blocks, "segm")


def test_where_both_have_an_empty_run_pycocotools_stops() -> None:
    """It then takes masks for equal that are not: what bounds an IoU must not be asked."""
    runs = [[2, 2, 0, 2, 36], [2, 2, 0, 38]]
    rles = [coco_mask.frPyObjects({"size": list(SIZE), "counts": each}, *SIZE) for each in runs]
    truth, found = one_image([[0, 0, 1, 1]], [[0, 0, 1, 1]], [0])
    truth = dataclasses.replace(truth, rles=RleColumn.of(rles[:1]), image_sizes=np.array([SIZE]))
    found = dataclasses.replace(found, rles=RleColumn.of(rles[1:]))
    assert found.rles is not None
    assert not found.rles.is_plain
    assert by_pycocotools(truth, found, "segm")[0].tolist() == [[1.0]]
    assert_listed(truth, found, "segm")


@pytest.mark.parametrize("which", ["an annotation", "a detection"])
@pytest.mark.parametrize("size", [(50, 40), (41, 50), (40, 49)])
def test_mask_of_another_size_is_an_error(which, size):
    truth, found = one_image([[0, 0, 10, 10]], [[0, 0, 10, 10]], [0])
    other = RleColumn.of([coco_mask.frPyObjects(np.array([[0.0, 0, 10, 10]]), *size)[0]])
    if which == "an annotation":
        truth = dataclasses.replace(truth, rles=other)
    else:
        found = dataclasses.replace(found, rles=other)
    message = f"image 7: the mask of {which} has size {list(size)}, the image [40, 50]"
    with pytest.raises(ValueError, match=re.escape(message)):
        block_overlaps(truth, found, "segm", only_candidates=True)


def test_masks_that_are_not_there_are_an_error():
    truth, found = one_block(0, "bbox")
    with pytest.raises(ValueError, match="have none"):
        block_overlaps(truth, found, "segm", only_candidates=True)
