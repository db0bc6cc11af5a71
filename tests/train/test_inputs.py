from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.model.categories import Category
from pipeline.storage.uris import UriText
from pipeline.train.config import DataConfig
from pipeline.train.data.labelled import DataError
from pipeline.train.inputs import picture_source, read_inputs, validation_of
from tests.evaluate.input_cases import write_output
from tests.train.loop_cases import scene
from tests.train.test_run import write_set


@pytest.fixture
def coco(tmp_path: Path) -> dict[str, str]:
    return {"uri": write_set(tmp_path, "train.json", range(6)), "image_root": str(tmp_path / "images")}


def config(**values: Any) -> DataConfig:
    return DataConfig.model_validate(values)


def test_classes_come_from_the_coco_file(coco: dict[str, str]) -> None:
    inputs = read_inputs(config(train=[coco]), None)
    assert inputs.categories == (Category(4, "box"), Category(9, "bar"))
    assert [len(source) for source in inputs.sources] == [6]
    assert inputs.validation is None
    assert inputs.reports[0].images == 6


def test_classes_in_the_order_of_the_config(coco: dict[str, str]) -> None:
    inputs = read_inputs(config(train=[coco]), ["bar", "box"])
    assert [category.name for category in inputs.categories] == ["bar", "box"]
    expected = [tuple(1 - label for label in scene(number).labels) for number in range(6)]
    assert [image.labels for image in inputs.sources[0]] == expected


def test_validation_has_a_class_that_training_lacks(coco: dict[str, str]) -> None:
    with pytest.raises(DataError, match=r"not trained: bar.*Its classes: box, bar.*Trained classes: box$"):
        read_inputs(config(train=[coco]), ["box"])


@pytest.fixture
def run(tmp_path: Path) -> str:
    """Of the annotate job: a sure, an uncertain and an unlikely detection on one image."""
    mask = np.zeros((20, 20), np.uint8)
    mask[2:12, 3:9] = 1
    from pycocotools import mask as coco_mask

    rle = coco_mask.encode(np.asfortranarray(mask))
    found = [
        {
            "image_id": 1,
            "category_id": 4,
            "bbox": [3, 2, 6, 10],
            "score": score,
            "area": 60,
            "segmentation": {"size": [20, 20], "counts": rle["counts"].decode()},
        }
        for score in (0.9, 0.5, 0.1)
    ]
    dataset = {"images": [{"id": 1, "height": 20, "width": 20, "file_name": "1.png"}]}
    write_output(str(tmp_path / "run"), dataset, found, {4: "box", 9: "bar"})
    return str(tmp_path / "run")


def test_a_mix_of_truth_and_pseudo_labels(coco: dict[str, str], run: str, tmp_path: Path) -> None:
    """Whatever comes first: the COCO file names the classes, the sources keep their order."""
    thresholds = tmp_path / "thresholds.yaml"
    thresholds.write_text("box: 0.8\n")
    pseudo = {"uri": run, "image_root": coco["image_root"], "class_thresholds_file": str(thresholds), "weight": 1.0}
    inputs = read_inputs(config(train=[pseudo, {**coco, "weight": 3.0}]), None)
    assert [len(source) for source in inputs.sources] == [1, 6]
    assert inputs.sources[0][0].labels == (0, 0)
    assert inputs.sources[0][0].ignored == (False, True)
    assert inputs.reports[0].below_threshold == 1


def test_a_low_threshold_leaves_nothing_uncertain(coco: dict[str, str], run: str, tmp_path: Path) -> None:
    thresholds = tmp_path / "thresholds.yaml"
    thresholds.write_text("box: 0.05\n")
    pseudo = {"uri": run, "image_root": coco["image_root"], "class_thresholds_file": str(thresholds)}
    inputs = read_inputs(config(train=[pseudo, coco]), None)
    assert inputs.sources[0][0].ignored == (False, False, False)


def test_nothing_names_the_classes(run: str) -> None:
    with pytest.raises(DataError, match=r"give them in model\.classes"):
        read_inputs(config(train=[{"uri": run}]), None)


def test_validation_images(coco: dict[str, str], tmp_path: Path) -> None:
    own = config(train=[coco], validation=coco)
    validation = validation_of(own, read_inputs(own, None))
    assert validation is not None
    assert len(validation) == 6
    assert np.array_equal(validation[3].pixels, scene(3).pixels)
    (tmp_path / "images" / "3.png").unlink()
    with pytest.raises(DataError, match=r"validation image 3 cannot be read: .*3\.png"):
        validation[3]


def test_image_roots_may_be_read_from(coco: dict[str, str]) -> None:
    pictures = picture_source(config(train=[coco], images={"allowed_roots": []}))
    own, other = pictures.read_many([UriText(f"{coco['image_root']}/0.png"), UriText("/etc/hostname")])
    assert isinstance(own, np.ndarray)
    assert not isinstance(other, np.ndarray)
