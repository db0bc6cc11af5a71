"""Small sets and what tidecv 1.0.1 makes of them.

``tide_golden.json`` is written by ``python -m tests.metrics.analysis.tide_golden`` in an environment that has this
project's requirements and ``tidecv==1.0.1``; the tests only read it. For each set it holds tidecv's AP, gains and
counts as released, and the same with one change: recalls are compared with ``linspace(0, 1, 101)``, as in COCO,
instead of ``n / 100``. Counts of errors leave out detections that tidecv ignores because of a crowd region.
"""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

GOLDEN = Path(__file__).with_suffix(".json")
RECALLS = np.linspace(0.0, 1.0, 101)
Json = dict[str, Any]


class Case(NamedTuple):
    """How a set is drawn; crowded images have more than 100 detections."""

    seed: int
    num_images: int
    num_categories: int
    max_objects: int
    max_detections: int


CASES = {
    "every error": Case(1, 30, 5, 6, 14),
    "few categories, many duplicates": Case(2, 20, 2, 8, 30),
    "more than 100 detections an image": Case(3, 4, 3, 20, 160),
    "empty images and categories": Case(4, 12, 9, 1, 3),
}


def draw(case: Case) -> tuple[Json, list[Json]]:
    """A COCO dataset and results, boxes only. No two scores are equal; a fifth of the objects are crowd regions.

    Drawn by ``random.Random.random`` alone, whose numbers Python promises never to change. Boxes lie on a grid, so
    that IoUs tie and some are exactly 0.5.
    """
    rng = Random(case.seed)
    annotations: list[Json] = []
    results: list[Json] = []
    for image in range(1, case.num_images + 1):
        objects = [_object(rng, case) for _ in range(_below(rng, case.max_objects + 1))]
        annotations += [{**item, "id": len(annotations) + n + 1, "image_id": image} for n, item in enumerate(objects)]
        for _ in range(_below(rng, case.max_detections + 1)):
            results.append({**_detection(rng, objects, case), "image_id": image, "score": rng.random()})
    dataset = {
        "images": [
            {"id": n, "file_name": f"{n}.jpg", "height": 100, "width": 100} for n in range(1, case.num_images + 1)
        ],
        "annotations": annotations,
        "categories": [{"id": n, "name": f"category {n}"} for n in range(1, case.num_categories + 1)],
    }
    return dataset, results


def _below(rng: Random, limit: int) -> int:
    return int(rng.random() * limit)


def _object(rng: Random, case: Case) -> Json:
    # The last category never has an object.
    category = 1 + _below(rng, max(1, case.num_categories - 1))
    box = [10 * _below(rng, 7), 10 * _below(rng, 7), 10 + 10 * _below(rng, 3), 10 + 10 * _below(rng, 3)]
    area = float(box[2] * box[3])
    return {"category_id": category, "bbox": box, "area": area, "iscrowd": int(rng.random() < 0.2), "segmentation": []}


def _detection(rng: Random, objects: list[Json], case: Case) -> Json:
    category = 1 + _below(rng, case.num_categories)
    box = [5 * _below(rng, 15), 5 * _below(rng, 15), 5 + 5 * _below(rng, 6), 5 + 5 * _below(rng, 6)]
    if objects and rng.random() < 0.75:
        like = objects[_below(rng, len(objects))]
        box = [value + (5 * _below(rng, 3) if rng.random() < 0.5 else 0) for value in like["bbox"]]
        category = like["category_id"] if rng.random() < 0.75 else category
    return {"category_id": category, "bbox": box}


def run_tidecv(dataset: Json, results: list[Json]) -> dict[str, Json]:
    """What tidecv says, ``as_released`` and with ``coco_recalls``."""
    import tidecv.ap
    from tidecv import TIDE, Data

    recalls = SimpleNamespace(array=np.array, searchsorted=lambda a, v, side: np.searchsorted(a, RECALLS, side))
    output = {}
    for name, namespace in (("as_released", np), ("coco_recalls", recalls)):
        tidecv.ap.np = namespace
        truth, found = Data("truth", max_dets=100), Data("found")
        for image in dataset["images"]:
            truth.add_image(image["id"], image["file_name"])
        for category in dataset["categories"]:
            truth.add_class(category["id"], category["name"])
        for item in dataset["annotations"]:
            add = truth.add_ignore_region if item["iscrowd"] else truth.add_ground_truth
            add(item["image_id"], item["category_id"], item["bbox"], None)
        for item in results:
            found.add_detection(item["image_id"], item["category_id"], item["score"], item["bbox"], None)
        tide = TIDE(mode=TIDE.BOX)
        run = tide.evaluate(truth, found)
        errors = tide.get_all_errors()
        output[name] = {
            "ap": run.ap,
            "main": errors["main"]["found"],
            "special": errors["special"]["found"],
            "counts": {kind.short_name: sum(map(_counts, of_kind)) for kind, of_kind in run.error_dict.items()},
        }
    return output


def _counts(error: Any) -> bool:
    return not (hasattr(error, "pred") and error.pred["used"] is None)


if __name__ == "__main__":
    golden = {name: run_tidecv(*draw(case)) for name, case in CASES.items()}
    GOLDEN.write_text(json.dumps(golden, indent=1) + "\n", encoding="utf-8")
