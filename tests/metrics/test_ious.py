from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from pipeline.metrics.blocks import DetectionBlock, TruthBlock
from pipeline.metrics.ious import block_ious
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


@pytest.mark.parametrize("iou_type", IOU_TYPES)
def test_by_hand(iou_type):
    truth, found = one_image(
        [[0, 0, 10, 10], [0, 0, 20, 20], [30, 30, 5, 5]], [[0, 0, 10, 10], [5, 0, 10, 10]], [0, 1, 0]
    )
    (ious,) = block_ious(truth, found, iou_type, same_category_only=True)
    # The second object is a crowd: intersection over the detection, which lies within it.
    assert ious.tolist() == [[1.0, 1.0, 0.0], [1 / 3, 1.0, 0.0]]


@pytest.mark.parametrize("iou_type", IOU_TYPES)
@pytest.mark.parametrize("seed", range(5))
def test_every_pair_equals_pycocotools(iou_type, seed):
    truth, found = one_block(seed, iou_type)
    ious = block_ious(truth, found, iou_type, same_category_only=False)
    assert len(ious) == len(truth)
    for image, matrix in enumerate(ious):
        objects, detections = slice(*truth.offsets[image : image + 2]), slice(*found.offsets[image : image + 2])
        sides = [(found.rles, truth.rles), (found.boxes.tolist(), truth.boxes.tolist())][iou_type == "bbox"]
        expected = coco_mask.iou(sides[0][detections], sides[1][objects], truth.crowd[objects].tolist())
        assert matrix.shape == (detections.stop - detections.start, objects.stop - objects.start)
        if matrix.size:
            np.testing.assert_array_equal(matrix, expected)


@pytest.mark.parametrize("iou_type", IOU_TYPES)
@pytest.mark.parametrize("seed", range(5))
def test_same_category_only_zeroes_the_others(iou_type, seed):
    truth, found = one_block(seed, iou_type)
    every = block_ious(truth, found, iou_type, same_category_only=False)
    same = block_ious(truth, found, iou_type, same_category_only=True)
    for image, (all_pairs, own) in enumerate(zip(every, same, strict=True)):
        objects, detections = slice(*truth.offsets[image : image + 2]), slice(*found.offsets[image : image + 2])
        equal = found.categories[detections][:, None] == truth.categories[objects]
        np.testing.assert_array_equal(own, np.where(equal, all_pairs, 0.0))


@pytest.mark.parametrize("which", ["an annotation", "a detection"])
@pytest.mark.parametrize("size", [(50, 40), (41, 50), (40, 49)])
def test_mask_of_another_size_is_an_error(which, size):
    truth, found = one_image([[0, 0, 10, 10]], [[0, 0, 10, 10]], [0])
    other = [coco_mask.frPyObjects(np.array([[0.0, 0, 10, 10]]), *size)[0]]
    if which == "an annotation":
        truth = dataclasses.replace(truth, rles=other)
    else:
        found = dataclasses.replace(found, rles=other)
    message = f"image 7: the mask of {which} has size {list(size)}, the image [40, 50]"
    with pytest.raises(ValueError, match=re.escape(message)):
        block_ious(truth, found, "segm", same_category_only=True)


def test_masks_that_are_not_there_are_an_error():
    truth, found = one_block(0, "bbox")
    with pytest.raises(ValueError, match="have none"):
        block_ious(truth, found, "segm", same_category_only=True)
