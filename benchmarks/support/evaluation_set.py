"""A COCO set that evaluates like val2017 with the results of a good detector, from a seed."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

Json = dict[str, Any]
Float64s = NDArray[np.float64]

NUM_CATEGORIES = 80
PERSON_SHARE = 0.3
OBJECTS_PER_IMAGE = 7.2
CATEGORIES_PER_IMAGE = 2.9
CROWD_SHARE = 0.014
DETECTIONS_PER_IMAGE = 100
NUM_VERTICES = 26
IMAGE_SIZES = ((480, 640), (427, 640), (640, 480))


class EvaluationSet(NamedTuple):
    """A ground truth file and a results file as JSON gives them; results carry boxes and masks."""

    dataset: Json
    results: list[Json]


class Blobs(NamedTuple):
    """Outlines of N star-shaped blobs and what they show.

    Attributes:
        categories: [N] positions among the categories.
        centres: [N, 2] x, y in pixels.
        sizes: [N] square root of the area, in pixels.
        radii: [N, V] distance of each vertex from the centre, in units of the size.
        aspects: [N] width over height.
    """

    categories: NDArray[np.int64]
    centres: Float64s
    sizes: Float64s
    radii: Float64s
    aspects: Float64s


def evaluation_set(num_images: int, seed: int = 0) -> EvaluationSet:
    """About 7 objects an image (1.4 % crowds) as polygons, and 100 detections an image as compressed RLE."""
    rng = np.random.default_rng(seed)
    images: list[Json] = []
    annotations: list[Json] = []
    results: list[Json] = []
    for image_id in range(1, num_images + 1):
        height, width = IMAGE_SIZES[int(rng.integers(len(IMAGE_SIZES)))]
        images.append({"id": image_id, "height": height, "width": width, "file_name": f"{image_id:012d}.jpg"})
        categories = _image_categories(rng)
        objects = _random_blobs(rng, min(int(rng.geometric(1 / OBJECTS_PER_IMAGE)), 60), categories, (height, width))
        for category, polygon in zip(objects.categories.tolist(), _polygons(objects, (height, width)), strict=True):
            item = {"id": len(annotations) + 1, "image_id": image_id, "category_id": category + 1}
            annotations.append({**item, **_annotated(polygon, (height, width), rng.random() < CROWD_SHARE)})
        results.extend({**row, "image_id": image_id} for row in _detections(rng, objects, categories, (height, width)))
    names = [{"id": k + 1, "name": f"category {k + 1}"} for k in range(NUM_CATEGORIES)]
    return EvaluationSet({"images": images, "annotations": annotations, "categories": names}, results)


def _image_categories(rng: np.random.Generator) -> NDArray[np.int64]:
    """The few categories that this image shows; the first one is a person in nearly half of the images."""
    popularity = 1 / np.arange(3, NUM_CATEGORIES + 2)
    others = rng.choice(
        NUM_CATEGORIES - 1, 1 + rng.poisson(CATEGORIES_PER_IMAGE - 1), False, popularity / popularity.sum()
    )
    return np.concatenate([[0] if rng.random() < 0.46 else [], others + 1]).astype(np.int64)


def _random_blobs(
    rng: np.random.Generator, num: int, categories: NDArray[np.int64], image_size: tuple[int, int]
) -> Blobs:
    height, width = image_size
    angle = np.arange(NUM_VERTICES) * (2 * np.pi / NUM_VERTICES)
    radii = np.full((num, NUM_VERTICES), 0.56)  # a disc of area 1
    for waves in (2, 3, 5):
        swing, phase = rng.uniform(0, 0.3 / waves, (num, 1)), rng.uniform(0, 2 * np.pi, (num, 1))
        radii += swing * np.cos(waves * angle + phase)
    return Blobs(
        categories=rng.choice(categories, num),
        centres=rng.uniform(0, 1, (num, 2)) * (width, height),
        sizes=np.clip(np.exp(rng.normal(np.log(45), 1.05, num)), 4, 400),
        radii=radii,
        aspects=np.exp(rng.normal(0, 0.4, num)),
    )


def _detections(
    rng: np.random.Generator, objects: Blobs, categories: NDArray[np.int64], image_size: tuple[int, int]
) -> list[Json]:
    """Good copies of most objects, poorer copies with lower scores, and blobs where there is nothing."""
    num_objects = len(objects.sizes)
    source = np.concatenate([np.flatnonzero(rng.random(num_objects) < 0.85), rng.integers(0, num_objects, 30)])
    source = source[:DETECTIONS_PER_IMAGE]
    first = np.zeros(len(source), np.bool_)
    first[np.unique(source, return_index=True)[1]] = True
    copies = _jittered(rng, Blobs(*(column[source] for column in objects)), np.where(first, 0.06, 0.25))
    guesses = np.concatenate([np.repeat(categories, 6), rng.integers(0, NUM_CATEGORIES, 12)])
    strays = _random_blobs(rng, DETECTIONS_PER_IMAGE - len(source), guesses, image_size)
    blobs = Blobs(*(np.concatenate(pair) for pair in zip(copies, strays, strict=True)))
    likely = np.concatenate([np.where(first, rng.beta(5, 2, len(source)), rng.beta(1.2, 6, len(source)) * 0.6)])
    scores = np.concatenate([likely, rng.beta(1, 12, len(strays.sizes))]).astype(np.float32)
    rles = coco_mask.frPyObjects(_polygons(blobs, image_size), *image_size)
    boxes = coco_mask.toBbox(rles) + rng.normal(0, 0.3, (len(rles), 4))
    order = np.argsort(-scores, kind="stable")
    return [
        {
            "category_id": int(blobs.categories[i]) + 1,
            "bbox": [round(float(side), 2) for side in np.maximum(boxes[i], 0)],
            "score": float(scores[i]),
            "segmentation": {"size": list(image_size), "counts": rles[i]["counts"].decode("ascii")},
        }
        for i in order
    ]


def _jittered(rng: np.random.Generator, blobs: Blobs, spread: Float64s) -> Blobs:
    """Copies moved and resized by ``spread`` times their size; one in twelve gets another category."""
    num = len(blobs.sizes)
    other = rng.integers(0, NUM_CATEGORIES, num)
    return Blobs(
        categories=np.where(rng.random(num) < 1 / 12, other, blobs.categories),
        centres=blobs.centres + rng.normal(0, 1, (num, 2)) * (spread * blobs.sizes * 0.6)[:, None],
        sizes=blobs.sizes * np.exp(rng.normal(0, 1, num) * spread * 0.6),
        radii=blobs.radii + rng.normal(0, 1, blobs.radii.shape) * spread[:, None] * 0.3,
        aspects=blobs.aspects * np.exp(rng.normal(0, 1, num) * spread * 0.4),
    )


def _polygons(blobs: Blobs, image_size: tuple[int, int]) -> list[list[float]]:
    """N polygons as COCO has them, clipped to the image."""
    height, width = image_size
    angle = np.arange(NUM_VERTICES) * (2 * np.pi / NUM_VERTICES)
    reach = blobs.sizes[:, None] * np.maximum(blobs.radii, 0.05)
    stretch = np.sqrt(blobs.aspects)[:, None]
    x = np.clip(blobs.centres[:, :1] + reach * np.cos(angle) * stretch, 0, width - 1)
    y = np.clip(blobs.centres[:, 1:] + reach * np.sin(angle) / stretch, 0, height - 1)
    return np.stack([x, y], axis=2).reshape(-1, 2 * NUM_VERTICES).round(2).tolist()


def _annotated(polygon: list[float], image_size: tuple[int, int], crowd: bool) -> Json:
    rle = coco_mask.frPyObjects([polygon], *image_size)[0]
    box = [float(side) for side in coco_mask.toBbox(rle)]
    segmentation: Any = [polygon]
    if crowd:
        segmentation = {"size": list(image_size), "counts": _run_lengths(rle)}
    return {"bbox": box, "area": float(coco_mask.area(rle)), "iscrowd": int(crowd), "segmentation": segmentation}


def _run_lengths(rle: Any) -> list[int]:
    """Uncompressed RLE: lengths of the alternating runs down the columns, zeros first."""
    pixels = coco_mask.decode(rle).reshape(-1, order="F")
    changes = np.flatnonzero(np.diff(pixels, prepend=0))
    return np.diff(changes, prepend=0, append=pixels.size).tolist()
