"""`configs/train_own.yaml` as it stands, on folders as Roboflow and COCO lay them out."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from jobs import train as cli
from pipeline.config.loading import load_config
from pipeline.model.cascade_mask_rcnn.detector import CascadeMaskRCNN
from pipeline.model.cascade_mask_rcnn.network import initialise
from pipeline.model.categories import Category
from pipeline.model.files.checkpoints import Checkpoint, save_checkpoint
from pipeline.model.predictor import load_model
from pipeline.synthetic.scenes import CATEGORIES, write_scenes
from pipeline.train.checks import check_pictures, check_places, oddities
from pipeline.train.config import TrainConfig
from pipeline.train.inputs import read_inputs
from tests.train.loop_cases import SETTINGS, TINY

CONFIG = Path(__file__).parents[2] / "configs" / "train_own.yaml"


def write_roboflow(folder: Path, count: int, seed: int) -> None:
    """A split: pictures and ``_annotations.coco.json`` in one folder; category 0, a name for all, has no objects."""
    scenes = folder.parent / f"scenes {seed}"
    content: dict[str, Any] = json.loads(write_scenes(scenes, count, seed, (64, 64)).read_text())
    folder.mkdir(parents=True)
    for image in content["images"]:
        name = Path(image["file_name"]).name
        (scenes / image["file_name"]).rename(folder / name)
        image |= {"file_name": name, "license": 1, "date_captured": "2026-01-01T00:00:00+00:00"}
    content["categories"] = [
        {"id": 0, "name": "shapes", "supercategory": "none"},
        *({**category, "supercategory": "shapes"} for category in content["categories"]),
    ]
    for annotation in content["annotations"]:
        annotation["iscrowd"] = 0
    content |= {"info": {"year": "2026"}, "licenses": [{"id": 1, "url": "", "name": "CC BY 4.0"}]}
    (folder / "_annotations.coco.json").write_text(json.dumps(content))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the command is started in, with a ``dataset`` and a small detector of other classes."""
    write_roboflow(tmp_path / "dataset" / "train", 8, 1)
    write_roboflow(tmp_path / "dataset" / "valid", 3, 2)
    detector = CascadeMaskRCNN(TINY)
    initialise(detector, 0)
    classes = tuple(Category(i, f"old {i}") for i in range(TINY.num_classes))
    save_checkpoint(Checkpoint(detector.state_dict(), TINY, classes, SETTINGS, {}), tmp_path / "detector.safetensors")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.ray
def test_a_few_steps(ray_cluster: None, here: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Two steps an epoch; the heads are made for the new classes, and what comes out finds them by name."""
    caplog.set_level(logging.INFO)
    changes = ["model.start=detector.safetensors", "schedule.epochs=2", "log_every=1"]
    arguments = [argument for change in changes for argument in ("--set", change)]
    assert cli.main(["--config", str(CONFIG), *arguments]) == 0
    written = json.loads(Path("training/training.json").read_text())
    assert written["iterations"] == 4
    assert [row["epoch"] for row in written["history"]] == [1, 2]
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert written["warnings"] == said
    warm_up, late, unused = said
    assert "schedule.warmup_iterations is 100, and there are 4 steps" in warm_up
    assert "schedule.steps has 18, 22, and schedule.epochs is 2" in late
    assert "of 1 of 6 classes (shapes)" in unused
    for words in ("starting 1 worker,", "the worker is up on cpu", "4 steps of 4 to go", "the first step is done"):
        assert any(words in line for line in caplog.messages), words
    names = ["shapes", *(category.name for category in CATEGORIES)]
    assert [category.name for category in load_model(here / "training" / "best.safetensors", "cpu").categories] == names


def test_as_coco_lays_it_out(here: Path) -> None:
    """``annotations/instances_train.json`` beside ``images/train``: two settings of each set, and nothing else."""
    for split, name in (("train", "train"), ("valid", "val")):
        (here / "dataset" / "images").mkdir(exist_ok=True)
        (here / "dataset" / "annotations").mkdir(exist_ok=True)
        folder = (here / "dataset" / split).rename(here / "dataset" / "images" / name)
        (folder / "_annotations.coco.json").rename(here / "dataset" / "annotations" / f"instances_{name}.json")
    changes = [
        "data.train.0.uri=dataset/annotations/instances_train.json",
        "data.train.0.image_root=dataset/images/train",
        "data.validation.uri=dataset/annotations/instances_val.json",
        "data.validation.image_root=dataset/images/val",
    ]
    config = load_config(TrainConfig, str(CONFIG), changes)
    check_places(config)
    inputs = read_inputs(config.data, config.model.classes)
    assert check_pictures(config, inputs, read_elsewhere=False) == []
    assert [books.usable for books in inputs.reports] == [8, 3]


@pytest.mark.parametrize("num_images", [50, 300, 1000])
def test_a_few_hundred_pictures_give_no_cause_for_a_warning(here: Path, num_images: int) -> None:
    config = load_config(TrainConfig, str(CONFIG))
    inputs = read_inputs(config.data, [category.name for category in CATEGORIES])
    assert oddities(config, inputs, num_images // config.data.batch_size) == []
