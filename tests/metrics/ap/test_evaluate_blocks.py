"""The core as a whole: bit for bit what pycocotools computes, however the images are split."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from pipeline.metrics.ap.accumulate import Accumulator
from pipeline.metrics.ap.figures import Arrays, coco_stats, evaluate_blocks
from pipeline.metrics.ap.records import block_records, sort_order
from pipeline.metrics.ious import block_overlaps
from pipeline.metrics.protocol import IOU_TYPES, CocoProtocol, IouType
from tests.evaluate.coco_cases import (
    CocoArrays,
    CocoCase,
    blocks_of,
    hotcoco_result,
    pycocotools_result,
    random_case,
    rle_of,
)

EXAMPLES = Path(__file__).resolve().parents[4] / "shared" / "data"
LIMITS = [(1, 10, 100), (100, 300, 1000), (1, 10, 300), (1, 2, 3)]


def grouped(
    case: CocoCase, iou_type: IouType, protocol: CocoProtocol, num_groups: int, rng: np.random.Generator
) -> Arrays:
    """Images dealt at random, records of the groups mixed and sorted per category, fed in chunks."""
    num_categories = len(case.dataset["categories"])
    images = case.dataset["images"]
    group_of = rng.integers(0, num_groups, len(images))
    parts = []
    for group in rng.permutation(num_groups).tolist():
        own = [image for image, number in zip(images, group_of.tolist(), strict=True) if number == group]
        orders = {image["id"]: n for n, image in enumerate(sorted(images, key=lambda image: image["id"]))}
        for truth, found in blocks_of(*only(case, {image["id"] for image in own}), iou_type):
            truth.orders[:] = [orders[id_] for id_ in truth.image_ids]
            overlaps = block_overlaps(truth, found, iou_type, only_candidates=True)
            parts.append(block_records(truth, found, overlaps, iou_type, num_categories, protocol))
    num_objects = np.sum([part.num_objects for part in parts], axis=0)
    results = []
    for k in range(num_categories):
        records = np.concatenate([part.records[part.categories == k] for part in parts])
        records = rng.permutation(records)
        accumulator = Accumulator(num_objects[k], 10, protocol.max_dets)
        for chunk in np.array_split(records[sort_order(records)], int(rng.integers(1, 9))):
            accumulator.update(chunk)
        results.append(accumulator.result())
    return Arrays.stack(results)


def only(case: CocoCase, image_ids: set[int]) -> CocoCase:
    """The part of a set on these images, all categories kept."""
    dataset = {
        "images": [image for image in case.dataset["images"] if image["id"] in image_ids],
        "annotations": [item for item in case.dataset["annotations"] if item["image_id"] in image_ids],
        "categories": case.dataset["categories"],
    }
    return CocoCase(dataset, [row for row in case.results if row["image_id"] in image_ids])


def in_process(case: CocoCase, iou_type: IouType, max_dets: tuple[int, int, int], images_per_block: int = 5) -> Arrays:
    blocks = blocks_of(*case, iou_type, images_per_block)
    return evaluate_blocks(blocks, iou_type, len(case.dataset["categories"]), CocoProtocol(max_dets))


def assert_equal(arrays: Arrays, expected: CocoArrays, max_dets: tuple[int, int, int]) -> None:
    for name in ("precision", "recall", "scores"):
        np.testing.assert_array_equal(getattr(arrays, name), getattr(expected, name), err_msg=name)
    first = 0 if 100 in max_dets else 1
    assert coco_stats(arrays, max_dets)[first:].tolist() == expected.stats[first:].tolist()


@pytest.mark.parametrize("iou_type", IOU_TYPES)
@pytest.mark.parametrize("max_dets", LIMITS)
@pytest.mark.parametrize("seed", range(5))
def test_equals_pycocotools(seed, max_dets, iou_type):
    case = random_case(seed, num_images=10)
    assert_equal(in_process(case, iou_type, max_dets), pycocotools_result(*case, iou_type, max_dets), max_dets)


@pytest.mark.parametrize("iou_type", IOU_TYPES)
@pytest.mark.parametrize("max_dets", LIMITS)
@pytest.mark.parametrize("seed", range(5, 8))
def test_equals_hotcoco(seed, max_dets, iou_type):
    """AP where 100 is not among the limits, too: both take the largest then."""
    case = without_id_0(random_case(seed, num_images=10))
    arrays, expected = in_process(case, iou_type, max_dets), hotcoco_result(*case, iou_type, max_dets)
    for name in ("precision", "recall", "scores"):
        np.testing.assert_array_equal(getattr(arrays, name), getattr(expected, name), err_msg=name)
    assert coco_stats(arrays, max_dets).tolist() == expected.stats.tolist()


def without_id_0(case: CocoCase) -> CocoCase:
    """The same with other ids of annotations."""
    annotations = [{**item, "id": item["id"] + 1} for item in case.dataset["annotations"]]
    return CocoCase({**case.dataset, "annotations": annotations}, case.results)


SIZE = (40, 45)
SIDES = st.sampled_from([0.0, 1.0, 8.0, 31.0, 32.0, 33.0])


@st.composite
def shapes(draw: st.DrawFn) -> dict[str, Any]:
    """A box that may be empty, and a mask about which it says nothing: a few columns of pixels, or none."""
    box = [draw(SIDES) / 8, draw(SIDES) / 8, draw(SIDES), draw(SIDES)]
    pixels = np.zeros(SIZE, np.uint8, order="F")
    first, last = sorted((draw(st.integers(0, SIZE[1])), draw(st.integers(0, SIZE[1]))))
    pixels[draw(st.integers(0, 8)) : draw(st.sampled_from([8, 32, 40])), first:last] = 1
    pixels[draw(st.integers(0, 39)), draw(st.integers(0, 44))] ^= 1
    rle = coco_mask.encode(pixels)
    return {"bbox": box, "segmentation": {"size": list(SIZE), "counts": rle["counts"].decode()}}


@st.composite
def cases(draw: st.DrawFn) -> CocoCase:
    """Up to three images: objects that are found exactly or nearly, crowds, equal scores, areas on the borders."""
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    num_images = draw(st.integers(1, 3))
    for image in range(1, num_images + 1):
        known = draw(st.lists(shapes(), max_size=4))
        found = draw(st.lists(shapes() | st.sampled_from(known) if known else shapes(), max_size=5))
        for shape in known:
            item = {"id": len(annotations) + 1, "image_id": image, "category_id": draw(st.integers(1, 2))}
            area = draw(st.sampled_from([0.0, 1023.0, 1024.0, 1025.0]))
            annotations.append({**item, **shape, "iscrowd": draw(st.integers(0, 1)), "area": area})
        for shape in found:
            item = {"image_id": image, "category_id": draw(st.integers(1, 2)), "score": draw(SIDES) / 33}
            results.append({**item, **shape})
    images = [{"id": image, "height": SIZE[0], "width": SIZE[1]} for image in range(1, num_images + 1)]
    categories = [{"id": id_, "name": str(id_)} for id_ in (1, 2)]
    return CocoCase({"images": images, "annotations": annotations, "categories": categories}, results)


@pytest.mark.parametrize("iou_type", IOU_TYPES)
@settings(max_examples=40, deadline=None)
@given(case=cases())
def test_any_set_equals_both(iou_type: IouType, case: CocoCase) -> None:
    limits = CocoProtocol().max_dets
    arrays = in_process(case, iou_type, limits)
    assert_equal(arrays, pycocotools_result(*case, iou_type), limits)
    assert_equal(arrays, hotcoco_result(*case, iou_type), limits)


@pytest.mark.parametrize("iou_type", IOU_TYPES)
@pytest.mark.parametrize("max_dets", LIMITS)
def test_more_detections_than_the_limits(max_dets, iou_type):
    case = random_case(103, num_images=2, num_categories=2, max_objects=30, max_detections=700)
    assert max(Counter((row["image_id"], row["category_id"]) for row in case.results).values()) > 300
    assert_equal(in_process(case, iou_type, max_dets), pycocotools_result(*case, iou_type, max_dets), max_dets)


@pytest.mark.parametrize("iou_type", IOU_TYPES)
@pytest.mark.parametrize("num_groups", [1, 2, 7, 50])
def test_any_number_of_groups(num_groups, iou_type):
    case, rng = random_case(200 + num_groups, num_images=40), np.random.default_rng(num_groups)
    expected = pycocotools_result(*case, iou_type)
    assert_equal(grouped(case, iou_type, CocoProtocol(), num_groups, rng), expected, CocoProtocol().max_dets)


def test_the_cases_are_nasty():
    """What the tests above rely on is there."""
    cases = [random_case(seed, num_images=10) for seed in range(8)]
    annotations = [item for case in cases for item in case.dataset["annotations"]]
    scores = [row["score"] for row in cases[0].results]
    assert len(set(scores)) < len(scores)
    assert {0, 1} == {item["iscrowd"] for item in annotations}
    assert {0.0, 1024.0, 9216.0} <= {item["area"] for item in annotations}
    assert any(item["id"] == 0 for item in annotations)
    assert any(0 in item["bbox"][2:] for item in annotations)
    assert any(row["category_id"] == 999 for case in cases for row in case.results)
    assert len({item["image_id"] for item in cases[0].dataset["annotations"]}) < len(cases[0].dataset["images"])


def test_no_detections_at_all():
    case = random_case(1)._replace(results=[])
    assert_equal(in_process(case, "segm", (1, 10, 100)), pycocotools_result(*case, "segm"), (1, 10, 100))


def test_nothing_to_evaluate():
    with pytest.raises(ValueError, match="need at least one array"):
        evaluate_blocks([], "bbox", 3, CocoProtocol())


def example(*parts: str) -> Path:
    path = EXAMPLES.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"{path.name} is not there")
    return path


@pytest.mark.parametrize(("iou_type", "published"), [("bbox", 0.505), ("segm", 0.320)])
def test_example_of_the_coco_api(iou_type, published):
    dataset = json.loads(example("cocoapi", "instances_val2014_100.json").read_text())
    results = json.loads(example("cocoapi", f"instances_val2014_fake{iou_type}100_results.json").read_text())
    case = CocoCase(dataset, results)
    arrays = in_process(case, iou_type, (1, 10, 100))
    assert_equal(arrays, pycocotools_result(*case, iou_type), (1, 10, 100))
    assert round(coco_stats(arrays, (1, 10, 100))[0], 3) == published


@pytest.mark.parametrize("iou_type", IOU_TYPES)
def test_real_annotations(iou_type):
    """Polygons and crowds of COCO 2017."""
    dataset = json.loads(example("coco_tiny", "annotations", "instances_val2017.json").read_text())
    case = CocoCase(dataset, moved_objects(dataset, np.random.default_rng(0)))
    assert_equal(in_process(case, iou_type, (1, 10, 100)), pycocotools_result(*case, iou_type), (1, 10, 100))


def moved_objects(dataset: dict[str, Any], rng: np.random.Generator) -> list[dict[str, Any]]:
    """Up to three copies of every object that is not a crowd, a few pixels off, with scores that tie."""
    sizes = {image["id"]: (image["height"], image["width"]) for image in dataset["images"]}
    results = []
    for item in np.repeat([a for a in dataset["annotations"] if not a["iscrowd"]], 3).tolist():
        if rng.random() < 0.5:
            continue
        height, width = sizes[item["image_id"]]
        shift = rng.integers(-6, 7, 2)
        outlines = [np.clip(np.reshape(xy, (-1, 2)) + shift, 0, (width, height)) for xy in item["segmentation"]]
        row = {name: item[name] for name in ("image_id", "category_id")}
        row["bbox"] = [item["bbox"][0] + float(shift[0]), item["bbox"][1] + float(shift[1]), *item["bbox"][2:]]
        row["score"] = float(rng.integers(1, 21) / 20)
        row["segmentation"] = rle_of([outline.ravel().tolist() for outline in outlines], height, width)
        results.append(row)
    return results
