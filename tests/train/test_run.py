"""The training job on a real Ray: a COCO file in, a checkpoint that annotate takes out."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from pycocotools import mask as coco_mask

from jobs import train as cli
from pipeline.model.cascade_mask_rcnn.detector import CascadeMaskRCNN
from pipeline.model.categories import Category
from pipeline.model.files.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from pipeline.model.predictor import load_model
from pipeline.storage.objects.open import open_objects
from pipeline.storage.uris import Uri
from pipeline.train.config import TrainConfig
from pipeline.train.loop.checkpoint_folder import CheckpointFolder
from testing.s3_server import S3Server, s3_environment_variables
from tests.train.loop_cases import SETTINGS, TINY, scene

SIZES = {
    "embed_dim": 8,
    "depths": [1, 1, 1, 1],
    "num_heads": [1, 1, 2, 2],
    "fpn_channels": 8,
    "box_convs": 1,
    "box_channels": 8,
    "box_fc": 16,
    "mask_convs": 1,
    "mask_channels": 8,
}

OTHER = replace(TINY, num_classes=3)


def write_set(folder: Path, name: str, numbers: range) -> str:
    """Scenes as a COCO file; the pictures go to ``images``."""
    (folder / "images").mkdir(exist_ok=True)
    images, annotations = [], []
    for number in numbers:
        sample = scene(number)
        height, width = sample.pixels.shape[:2]
        images.append({"id": number, "file_name": f"{number}.png", "height": height, "width": width})
        Image.fromarray(sample.pixels).save(folder / "images" / f"{number}.png")
        for box, label, mask in zip(sample.boxes.tolist(), sample.labels.tolist(), sample.masks, strict=True):
            rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": [4, 9][label],
                    "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
                    "area": int(mask.sum()),
                    "iscrowd": 0,
                    "segmentation": {"size": [height, width], "counts": rle["counts"].decode()},
                }
            )
    categories = [{"id": 4, "name": "box"}, {"id": 9, "name": "bar"}]
    path = folder / name
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return str(path)


@pytest.fixture
def values(tmp_path: Path) -> dict[str, Any]:
    return training_values(tmp_path)


def training_values(folder: Path) -> dict[str, Any]:
    """A config of two workers and two epochs, and its data."""
    root = str(folder / "images")
    return {
        "data": {
            "train": [{"uri": write_set(folder, "train.json", range(8)), "image_root": root}],
            "validation": {"uri": write_set(folder, "val.json", range(100, 103)), "image_root": root},
            "batch_size": 2,
        },
        "model": {"sizes": SIZES, "short_side": 64, "long_side": 64, "proposals": 50},
        "augment": {"scale": "large_scale_jitter", "side": 64, "scale_range": [0.8, 1.2], "copy_paste": 0.5},
        "optimizer": {"lr": 0.001, "ema_decay": 0.9},
        "schedule": {"epochs": 2, "steps": [1], "warmup_iterations": 2},
        "log_every": 1,
        "resources": {"workers": 2, "gpus_per_worker": 0},
        "output": {"uri": str(folder / "out")},
    }


def run(tmp_path: Path, values: dict[str, Any], *arguments: str) -> int:
    path = tmp_path / "train.yaml"
    path.write_text(yaml.safe_dump(values))
    return cli.main(["--config", str(path), *arguments])


@pytest.mark.ray
@pytest.mark.slow
def test_train_then_go_on_with_what_is_there(
    ray_cluster: None, tmp_path: Path, values: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Two workers; the second command finds nothing to do, and another learning rate is refused."""
    caplog.set_level(logging.INFO)
    assert run(tmp_path, values) == 0
    out = tmp_path / "out"
    names = {path.name for path in out.iterdir() if not path.name.startswith((".", "_"))}
    assert names == {
        "best.safetensors",
        "last.safetensors",
        "state-00000004.safetensors",
        "tensorboard",
        "training.json",
    }
    written = json.loads((out / "training.json").read_text())
    assert written["iterations"] == 4  # 8 images, 2 workers of 2, 2 epochs
    assert [row["epoch"] for row in written["history"]] == [1, 2]
    model = load_model(out / "best.safetensors", "cpu")
    assert [category.name for category in model.categories] == ["box", "bar"]
    assert model.settings.short_side == 64
    assert any("epoch 2 iteration 4/4" in line for line in caplog.messages), "the workers' lines are heard"
    assert list((out / "tensorboard").iterdir())
    best = (out / "best.safetensors").read_bytes()
    assert run(tmp_path, values) == 0
    assert (out / "best.safetensors").read_bytes() == best
    assert run(tmp_path, values, "--set", "optimizer.lr=0.01") == 2
    assert "optimizer.lr: 0.001, now 0.01" in caplog.messages[-1]


@pytest.mark.ray
@pytest.mark.slow
def test_from_s3_to_s3(ray_s3: S3Server, tmp_path: Path, values: dict[str, Any]) -> None:
    """Annotations, pictures and checkpoints; the second command goes on from what the first one left there."""
    for path in [*tmp_path.glob("*.json"), *tmp_path.glob("images/*.png")]:
        ray_s3.put("pictures", f"train/{path.relative_to(tmp_path)}", path.read_bytes())
    for entry in (*values["data"]["train"], values["data"]["validation"]):
        entry |= {"uri": f"s3://pictures/train/{Path(entry['uri']).name}", "image_root": "s3://pictures/train/images"}
    values["resources"]["workers"] = 1
    values["output"]["uri"] = "s3://pictures/train/out"
    values["schedule"]["steps"] = []
    with s3_environment_variables(ray_s3.endpoint):
        assert run(tmp_path, values) == 0
        saved = CheckpointFolder(Uri("s3://pictures/train/out")).load_last()
        assert saved is not None
        assert saved.position.iteration == 8
        assert run(tmp_path, values) == 0
        names = {entry.name for entry in open_objects(Uri("s3://pictures/train/out")).list("").files}
    assert {"best.safetensors", "last.safetensors", "training.json"} <= names


@pytest.mark.ray
def test_fine_tune_a_detector_on_other_classes(
    ray_cluster: None, tmp_path: Path, values: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """One epoch with a validation, from a file with three classes; one picture of the new set is damaged."""
    caplog.set_level(logging.INFO)
    old = Checkpoint(
        CascadeMaskRCNN(OTHER).state_dict(), OTHER, tuple(Category(i, f"old {i}") for i in range(3)), SETTINGS, {}
    )
    save_checkpoint(old, tmp_path / "old.safetensors")
    (tmp_path / "images" / "5.png").write_bytes(b"no picture")
    del values["model"]["sizes"]
    values["model"]["start"] = str(tmp_path / "old.safetensors")
    values["resources"]["workers"] = 1
    assert run(tmp_path, values, "--set", "schedule.epochs=1", "--set", "schedule.steps=[]") == 0
    said = "\n".join(caplog.messages)
    assert "it has 3 classes and the data 2 others; initial weights for box_heads.stages.*.classify, " in said
    assert "image 5 is skipped: " in said
    written = json.loads((tmp_path / "out" / "training.json").read_text())
    assert written["iterations"] == 4
    assert [row["epoch"] for row in written["history"]] == [1]
    assert [entry["image_id"] for entry in written["unreadable"]] == [5]
    after = load_checkpoint(tmp_path / "out" / "best.safetensors")
    assert [category.name for category in after.categories] == ["box", "bar"]
    assert after.variant == TINY


@pytest.mark.ray
def test_more_workers_than_the_cluster_has_room_for(
    ray_cluster: None, tmp_path: Path, values: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Three CPUs: the workers would leave none to read pictures with, and wait for pictures for ever."""
    assert run(tmp_path, values, "--set", "resources.workers=3") == 2
    assert "ClusterError: 3 workers of 1 CPUs, and 1 to read pictures with, do not fit on the 3" in caplog.messages[-1]


@pytest.mark.ray
def test_a_loss_that_is_no_number(
    ray_cluster: None, tmp_path: Path, values: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    values["resources"]["workers"] = 1
    values["optimizer"]["lr"] = 1e30
    values["schedule"]["warmup_iterations"] = 0
    with caplog.at_level(logging.INFO):
        assert run(tmp_path, values) == 1
    assert caplog.messages[-1].startswith("exit code 1: NonFiniteLoss: ")
    assert "image" in caplog.messages[-1]


class TestBadInput:
    """Found before Ray starts."""

    @pytest.fixture(autouse=True)
    def _no_ray(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def started(*args: Any, **options: Any) -> None:
            raise AssertionError("Ray was started")

        monkeypatch.setattr("pipeline.train.run.connect", started)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            pytest.param("model.classes=[box]", "DataError: .*classes that are not trained: bar", id="class"),
            pytest.param("model.start=nowhere.pth", "UnknownModelError: .*neither a file", id="start"),
            pytest.param("data.validation.uri=gone.json", "gone.json", id="validation"),
            pytest.param("model.short_side=900", "ConfigError: .*short_side must be at most", id="size"),
            pytest.param("output.uri=https://example.org/x", "ConfigError: .*nothing can be written", id="output"),
        ],
    )
    def test_exit_code_2(
        self, tmp_path: Path, values: dict[str, Any], caplog: pytest.LogCaptureFixture, change: str, message: str
    ) -> None:
        assert run(tmp_path, values, "--set", change) == 2
        assert re.search(message, caplog.messages[-1]), caplog.messages[-1]

    def test_classes_of_a_file_that_is_gone_on_with(
        self, tmp_path: Path, values: dict[str, Any], caplog: pytest.LogCaptureFixture
    ) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "last.safetensors").write_bytes(b"nonsense")
        assert run(tmp_path, values) == 2
        assert "last.safetensors" in caplog.messages[-1]


def test_config_of_the_tests_is_what_it_says(values: dict[str, Any]) -> None:
    config = TrainConfig.model_validate(values)
    assert config.schedule.epochs == 2
