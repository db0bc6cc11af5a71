"""Against pycocotools, and detections that are the truth itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipeline.model.detections import Detections
from pipeline.model.files.checkpoints import Checkpoint
from pipeline.model.predictor import Predictor, load_model
from pipeline.train.loop.validate import detection_block, truth_block, validate
from pipeline.train.sample.sample import Sample
from tests.evaluate.coco_cases import pycocotools_result
from tests.train.loop_cases import CATEGORIES, scene, tiny_start


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    start = tiny_start()
    settings = replace(start.settings, score_threshold=0.0)
    checkpoint = Checkpoint(start.detector.state_dict(), start.detector.variant, start.categories, settings)
    return load_model(checkpoint, "cpu")


def as_coco(samples: list[Sample], found: list[Detections]):
    annotations, results = [], []
    for number, (sample, detections) in enumerate(zip(samples, found, strict=True), 1):
        block = truth_block([sample], [0])
        for at in range(len(block.ids)):
            rle = block.rles[at]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": CATEGORIES[block.categories[at]].id,
                    "bbox": block.boxes[at].tolist(),
                    "area": float(block.areas[at]),
                    "iscrowd": int(block.crowd[at]),
                    "segmentation": {**rle, "counts": rle["counts"].decode()},
                }
            )
        own = detection_block([detections])
        for at in range(len(own.scores)):
            rle = own.rles[at]
            results.append(
                {
                    "image_id": number,
                    "category_id": CATEGORIES[own.categories[at]].id,
                    "bbox": own.boxes[at].tolist(),
                    "score": float(own.scores[at]),
                    "segmentation": {**rle, "counts": rle["counts"].decode()},
                }
            )
    images = [
        {"id": number, "height": s.pixels.shape[0], "width": s.pixels.shape[1]} for number, s in enumerate(samples, 1)
    ]
    dataset = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": category.id, "name": category.name} for category in CATEGORIES],
    }
    return dataset, results


def test_equals_pycocotools(predictor: Predictor) -> None:
    samples = [scene(number) for number in range(5)]
    samples[1] = replace(samples[1], ignored=np.ones(len(samples[1].labels), np.bool_))
    empty = scene(9)
    samples.append(
        Sample(
            9,
            empty.pixels,
            empty.boxes[:0],
            empty.labels[:0],
            empty.masks[:0],
            empty.ignored[:0],
        )
    )
    figures = validate(predictor, samples, batch_size=2)
    dataset, results = as_coco(samples, predictor.predict([sample.pixels for sample in samples], 2))
    assert len(results) > 20
    for kind in ("bbox", "segm"):
        expected = pycocotools_result(dataset, results, kind, (1, 10, 100)).stats
        assert figures[f"{kind}_mAP"] == expected[0]
        assert figures[f"{kind}_AR@100"] == expected[8]


class Knowing:
    """Finds what is there."""

    categories = CATEGORIES

    def __init__(self, samples: list[Sample]) -> None:
        self._samples = iter(samples)

    def predict(self, images: list[np.ndarray], batch_size: int) -> list[Detections]:
        return [self._of(next(self._samples)) for _ in images]

    def _of(self, sample: Sample) -> Detections:
        count = len(sample.labels)
        full = np.ones((count, 28, 28), np.float32)
        scores = np.linspace(0.9, 0.8, count, dtype=np.float32)
        return Detections(sample.boxes, scores, sample.labels, full, sample.pixels.shape[:2])


def test_the_truth_is_perfect() -> None:
    samples = [scene(number) for number in range(4)]
    figures = validate(Knowing(samples), samples, batch_size=3)
    assert figures["bbox_mAP"] == pytest.approx(1.0)
    assert figures["segm_mAP"] == pytest.approx(1.0)


def test_no_images(predictor: Predictor) -> None:
    with pytest.raises(ValueError, match="no images"):
        validate(predictor, [], 2)
