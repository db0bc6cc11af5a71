"""Nasty COCO sets at random, as dicts and as blocks, and what pycocotools makes of them."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import hotcoco
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pipeline.masks.rle import Rle, RleColumn
from pipeline.metrics.blocks import DetectionBlock, TruthBlock
from pipeline.metrics.protocol import COCO_MAX_DETS, IouType

Json = dict[str, Any]

# Sides whose products lie on the borders of the area ranges, and zero; positions are multiples of 8, so that
# IoUs tie. One pixel more or less puts areas next to a border.
SIDES = (0, 8, 16, 31, 32, 33, 64, 95, 96, 97)
ANNOTATED_AREAS = (0.0, 1023.9999, 1024.0, 1024.0001, 9216.0, 9216.5, 1e10, 2e10)


class CocoCase(NamedTuple):
    """A ground truth file and a results file, as JSON would give them. Results carry boxes and masks."""

    dataset: Json
    results: list[Json]


class CocoArrays(NamedTuple):
    """What COCOeval computes: precision and scores [T, R, K, A, M], recall [T, K, A, M], stats [12]."""

    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    scores: NDArray[np.float64]
    stats: NDArray[np.float64]


def random_case(
    seed: int,
    num_images: int = 8,
    num_categories: int = 4,
    max_objects: int = 8,
    max_detections: int = 16,
    image_size: tuple[int, int] = (120, 136),
) -> CocoCase:
    """A set with ties in score and in IoU, crowds, areas on the borders of the ranges and objects of no area.

    Ids of images and categories are neither dense nor in order; the first annotation has id 0; the last category
    has no objects, and half of the images have no objects or no detections. A few detections have a category
    that the ground truth does not know. ``max_detections`` far above 100 fills cells beyond COCO's limit.

    Args:
        seed: equal seeds and sizes give equal sets.
        num_images: N.
        num_categories: K.
        max_objects: on one image.
        max_detections: on one image.
        image_size: H, W in pixels.
    """
    rng = np.random.default_rng(seed)
    image_ids = (rng.permutation(num_images * 3)[:num_images] + 1).tolist()
    category_ids = (rng.permutation(num_categories * 2)[:num_categories] + 1).tolist()
    annotations: list[Json] = []
    results: list[Json] = []
    for image_id in image_ids:
        objects = [_random_object(rng, category_ids[:-1] or category_ids, image_size) for _ in _some(rng, max_objects)]
        for item in objects:
            annotations.append({**item, "id": len(annotations), "image_id": image_id})
        for _ in _some(rng, max_detections):
            results.append({**_random_detection(rng, objects, category_ids, image_size), "image_id": image_id})
    height, width = image_size
    dataset = {
        "images": [{"id": i, "height": height, "width": width, "file_name": f"{i:012d}.jpg"} for i in image_ids],
        "annotations": annotations,
        "categories": [{"id": i, "name": f"category {i}"} for i in category_ids],
    }
    return CocoCase(dataset, results)


def _some(rng: np.random.Generator, most: int) -> range:
    """Up to ``most`` times, not once in a quarter of the cases."""
    return range(int(rng.integers(1, most + 1)) if most and rng.random() > 0.25 else 0)


def _random_object(rng: np.random.Generator, category_ids: Sequence[int], image_size: tuple[int, int]) -> Json:
    box = _random_box(rng, image_size)
    mask = _mask(rng, box, image_size)
    area = float(rng.choice(ANNOTATED_AREAS)) if rng.random() < 0.3 else float(coco_mask.area(mask))
    crowd = int(rng.random() < 0.15)
    return {
        "category_id": int(rng.choice(category_ids)),
        "bbox": box,
        "area": area,
        "iscrowd": crowd,
        "segmentation": _as_json(mask),
    }


def _random_detection(
    rng: np.random.Generator, objects: Sequence[Json], category_ids: Sequence[int], image_size: tuple[int, int]
) -> Json:
    box, category_id = _random_box(rng, image_size), int(rng.choice([*category_ids, 999]))
    if objects and rng.random() < 0.7:
        like = objects[int(rng.integers(len(objects)))]
        shift = rng.choice([0, 0, 0, 4, -4, 8], 4)
        box = _inside([a + b for a, b in zip(like["bbox"], shift.tolist(), strict=True)], image_size)
        category_id = like["category_id"] if rng.random() < 0.85 else category_id
    mask = _mask(rng, box, image_size)
    score = float(rng.choice([round(float(rng.random()), 1), float(np.float32(rng.random()))]))
    return {"category_id": category_id, "bbox": box, "score": score, "segmentation": _as_json(mask)}


def _random_box(rng: np.random.Generator, image_size: tuple[int, int]) -> list[float]:
    height, width = image_size
    sides = [float(side) for side in rng.choice(SIDES, 2, p=[0.04, *[0.96 / (len(SIDES) - 1)] * (len(SIDES) - 1)])]
    corner = [float(8 * rng.integers(0, max(1, int(side) // 8))) for side in (width - sides[0], height - sides[1])]
    return _inside([*corner, *sides], image_size)


def _inside(box: Sequence[float], image_size: tuple[int, int]) -> list[float]:
    height, width = image_size
    x, y = min(max(box[0], 0.0), width - 1.0), min(max(box[1], 0.0), height - 1.0)
    return [x, y, min(max(box[2], 0.0), width - x), min(max(box[3], 0.0), height - y)]


def _mask(rng: np.random.Generator, box: Sequence[float], image_size: tuple[int, int]) -> Rle:
    """The box, now and then with a hole, which moves the mask's IoU away from the box's."""
    x, y, w, h = (int(value) for value in box)
    pixels = np.zeros(image_size, np.uint8, order="F")
    pixels[y : y + h, x : x + w] = 1
    if rng.random() < 0.3:
        pixels[y + h // 4 : y + h // 2, x + w // 4 : x + w // 2] = 0
    return coco_mask.encode(pixels)


def _as_json(rle: Rle) -> Json:
    return {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")}


def blocks_of(
    dataset: Json, results: Sequence[Json], iou_type: IouType, images_per_block: int = 2000
) -> list[tuple[TruthBlock, DetectionBlock]]:
    """The same set as blocks of consecutive images of the file; detections of unknown categories are left out."""
    positions = {id_: k for k, id_ in enumerate(sorted(category["id"] for category in dataset["categories"]))}
    orders = {id_: n for n, id_ in enumerate(sorted(image["id"] for image in dataset["images"]))}
    truth: dict[Any, list[Json]] = {id_: [] for id_ in orders}
    found: dict[Any, list[tuple[int, Json]]] = {id_: [] for id_ in orders}
    for item in dataset["annotations"]:
        truth[item["image_id"]].append(item)
    seen = dict.fromkeys(orders, 0)
    for item in results:
        if item["category_id"] in positions:
            found[item["image_id"]].append((seen[item["image_id"]], item))
        seen[item["image_id"]] += 1
    images = dataset["images"]
    return [
        (_truth_block(part, truth, orders, positions, iou_type), _detection_block(part, found, positions, iou_type))
        for part in (images[start : start + images_per_block] for start in range(0, len(images), images_per_block))
    ]


def _truth_block(
    images: Sequence[Json],
    truth: dict[Any, list[Json]],
    orders: dict[Any, int],
    positions: dict[int, int],
    iou_type: IouType,
) -> TruthBlock:
    sizes = {image["id"]: (image["height"], image["width"]) for image in images}
    items = [item for image in images for item in truth[image["id"]]]
    return TruthBlock(
        image_ids=list(sizes),
        orders=np.array([orders[id_] for id_ in sizes], np.int64),
        image_sizes=np.array(list(sizes.values()), np.int64).reshape(-1, 2),
        offsets=_offsets([len(truth[id_]) for id_ in sizes]),
        ids=np.array([item["id"] for item in items], np.int64),
        categories=np.array([positions[item["category_id"]] for item in items], np.int64),
        boxes=np.array([item["bbox"] for item in items], np.float64).reshape(-1, 4),
        areas=np.array([item["area"] for item in items], np.float64),
        crowd=np.array([item.get("iscrowd", 0) for item in items], np.bool_),
        rles=RleColumn.of([rle_of(item["segmentation"], *sizes[item["image_id"]]) for item in items])
        if iou_type == "segm"
        else None,
    )


def _detection_block(
    images: Sequence[Json], found: dict[Any, list[tuple[int, Json]]], positions: dict[int, int], iou_type: IouType
) -> DetectionBlock:
    rows = [row for image in images for row in found[image["id"]]]
    rles = None
    if iou_type == "segm":
        rles = RleColumn.of([rle_of(item["segmentation"], *item["segmentation"]["size"]) for _, item in rows])
    if all("bbox" in item for _, item in rows):
        boxes = np.array([item["bbox"] for _, item in rows], np.float64)
    else:
        boxes = coco_mask.toBbox([item["segmentation"] for _, item in rows])
    return DetectionBlock(
        offsets=_offsets([len(found[image["id"]]) for image in images]),
        positions=np.array([position for position, _ in rows], np.int64),
        categories=np.array([positions[item["category_id"]] for _, item in rows], np.int64),
        boxes=boxes.reshape(-1, 4),
        scores=np.array([item["score"] for _, item in rows], np.float64),
        rles=rles,
    )


def rle_of(segmentation: Any, height: int, width: int) -> Rle:
    """Polygons, uncompressed or compressed RLE of a COCO file -> compressed RLE, as ``COCO.annToRLE`` does it."""
    if isinstance(segmentation, list):
        return coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    if isinstance(segmentation["counts"], list):
        return coco_mask.frPyObjects(segmentation, height, width)
    counts = segmentation["counts"]
    return Rle(size=list(segmentation["size"]), counts=counts if isinstance(counts, bytes) else counts.encode("ascii"))


def _offsets(lengths: Sequence[int]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def run_pycocotools(
    dataset: Json, results: Sequence[Json], iou_type: IouType, max_dets: Sequence[int] = COCO_MAX_DETS
) -> COCOeval:
    """COCOeval after ``evaluate`` and ``accumulate``.

    Boxes are taken out of results that are evaluated by masks, as mmdet does: pycocotools would take the
    detections' areas from the boxes otherwise.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(dataset)
        truth.createIndex()
        found = COCO()
        found.dataset = {**truth.dataset, "annotations": []}
        found.createIndex()
        if results:
            left_out = "bbox" if iou_type == "segm" else "segmentation"
            found = truth.loadRes([{k: copy.copy(v) for k, v in row.items() if k != left_out} for row in results])
        evaluation = COCOeval(truth, found, iou_type)
        evaluation.params.maxDets = list(max_dets)
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def pycocotools_result(
    dataset: Json, results: Sequence[Json], iou_type: IouType, max_dets: Sequence[int] = COCO_MAX_DETS
) -> CocoArrays:
    """The oracle. ``stats[0]`` is -1 where 100 is not among ``max_dets``, as in COCOeval."""
    evaluation = run_pycocotools(dataset, results, iou_type, max_dets)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.summarize()
    arrays = evaluation.eval
    return CocoArrays(arrays["precision"], arrays["recall"], arrays["scores"], evaluation.stats)


def hotcoco_result(
    dataset: Json, results: Sequence[Json], iou_type: IouType, max_dets: Sequence[int] = COCO_MAX_DETS
) -> CocoArrays:
    """A second oracle that shares no code with the first. Unlike that it counts matches with an annotation of id 0."""
    left_out = "bbox" if iou_type == "segm" else "segmentation"
    rows = [{key: value for key, value in row.items() if key != left_out} for row in results]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = hotcoco.COCO(copy.deepcopy(dataset))
        evaluation = hotcoco.COCOeval(truth, truth.load_res(rows), iou_type)
        evaluation.params.max_dets = list(max_dets)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    arrays = evaluation.eval
    assert arrays is not None
    return CocoArrays(arrays["precision"], arrays["recall"], arrays["scores"], np.asarray(evaluation.stats))
