from __future__ import annotations

from dataclasses import replace

import pytest

from pipeline.evaluate.examples import Example, example_of
from pipeline.metrics.protocol import IouType
from tests.evaluate.coco_cases import blocks_of, random_case


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_examples_survive_as_text(iou_type: IouType) -> None:
    case = random_case(3)
    ((truth, found),) = blocks_of(case.dataset, case.results, iou_type)
    truth = replace(truth, file_names=[f"{i}.jpg" for i in truth.image_ids])
    for image, image_id in enumerate(truth.image_ids):
        example = example_of(truth, found, image, 0.3)
        assert Example.decode(example.encode()) == example
        assert (example.image_id, example.file_name) == (image_id, f"{image_id}.jpg")
        scores = [r["score"] for r in case.results if r["image_id"] == image_id and r["category_id"] != 999]
        assert example.detections.scores == [score for score in scores if score >= 0.3]
        assert len(example.truth.boxes) == sum(a["image_id"] == image_id for a in case.dataset["annotations"])
        assert (example.truth.rles is None) == (iou_type == "bbox")
