from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.config.base import ConfigError
from pipeline.config.loading import load_config
from pipeline.model.cascade_mask_rcnn.variants import SWIN_T
from pipeline.model.settings import PUBLISHED_SAMPLING, Quota, TestSettings
from pipeline.train.augment import MultiScale, ScaleJitter
from pipeline.train.config import TrainConfig
from pipeline.train.loop.settings import OptimizerConfig, ScheduleConfig

COCO = {"uri": "/data/train.json", "image_root": "/data/images"}


def values(**sections: Any) -> dict[str, Any]:
    return {
        "data": {"train": [COCO]},
        "model": {"variant": "swin_t"},
        "output": {"uri": "/data/run"},
        **sections,
    }


def config(**sections: Any) -> TrainConfig:
    return TrainConfig.model_validate(values(**sections))


def test_defaults_are_the_published_ones() -> None:
    optimizer, schedule = config().optimizer, config().schedule
    assert (optimizer.lr, optimizer.betas, optimizer.weight_decay) == (1e-4, (0.9, 0.999), 0.05)
    assert (optimizer.max_grad_norm, optimizer.ema_decay) == (None, None)
    assert (schedule.epochs, schedule.steps, schedule.gamma) == (36, (27, 33), 0.1)
    assert (schedule.warmup_iterations, schedule.warmup_factor) == (500, 0.001)
    assert config().precision == "fp32"
    assert config().augment.rescale() == MultiScale()
    assert config().model.architecture() == SWIN_T


@pytest.mark.parametrize("path", sorted(Path(__file__).parents[2].glob("configs/*train*.yaml")), ids=lambda p: p.name)
def test_ready_configs_are_valid(path: Path) -> None:
    assert load_config(TrainConfig, str(path), []).data.train


def test_published_sampling_and_what_small_pictures_need() -> None:
    assert config().sampling == PUBLISHED_SAMPLING
    assert (PUBLISHED_SAMPLING.anchor_quota, PUBLISHED_SAMPLING.roi_quota) == (Quota(256, 0.5), Quota(512, 0.25))
    few = config(sampling={"anchors": 64, "proposals": 200, "rois": 48}).sampling
    assert (few.anchor_quota, few.proposals, few.roi_quota) == (Quota(64, 0.5), 200, Quota(48, 0.25))


def test_what_is_set_arrives() -> None:
    found = config(
        optimizer={"lr": 0.01, "betas": [0.8, 0.9], "max_grad_norm": 5, "ema_decay": 0.99},
        schedule={"epochs": 3, "steps": [2], "warmup_iterations": 0},
        augment={"scale": "large_scale_jitter", "side": 160, "scale_range": [0.5, 1.5], "copy_paste": 0.5},
        model={"sizes": {"embed_dim": 32, "depths": [2, 2, 2, 2], "num_heads": [1, 2, 4, 8]}},
        precision="bf16",
        seed=4,
        output={"uri": "/data/run", "save_every": 100},
    )
    assert found.optimizer == OptimizerConfig(lr=0.01, betas=(0.8, 0.9), max_grad_norm=5, ema_decay=0.99)
    assert found.schedule == ScheduleConfig(epochs=3, steps=(2,), warmup_iterations=0)
    assert (found.precision, found.seed, found.output.save_every) == ("bf16", 4, 100)
    assert found.augment.rescale() == ScaleJitter(160, 0.5, 1.5)
    variant = found.model.architecture()
    assert variant is not None
    assert (variant.embed_dim, variant.fpn_channels) == (32, 256)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key": ({"optimizer": {"learning_rate": 1}}, "optimizer.learning_rate: no such setting"),
    "no source": ({"data": {"train": []}}, "data.train: .*at least 1"),
    "no image root": ({"data": {"train": [{"uri": "a.json"}]}}, "image_root is missing"),
    "some weights": ({"data": {"train": [{**COCO, "weight": 1.0}, COCO]}}, "to all sources or to none"),
    "bands": ({"data": {"train": [{"uri": "run", "ignored_score": 0.9}]}}, "ignored_score must be at most"),
    "two architectures": (
        {"model": {"variant": "swin_t", "sizes": {"embed_dim": 8, "depths": [1] * 4, "num_heads": [1] * 4}}},
        "make one of them null",
    ),
    "no architecture": ({"model": {}}, "needs variant or sizes"),
    "heads": (
        {"model": {"sizes": {"embed_dim": 8, "depths": [1] * 4, "num_heads": [3] * 4}}},
        "do not split over 3 heads",
    ),
    "classes twice": ({"model": {"variant": "swin_t", "classes": ["a", "a"]}}, "'a' is listed twice"),
    "steps": ({"schedule": {"steps": [3, 2]}}, "steps must ascend"),
    "scales": ({"augment": {"scale": "large_scale_jitter", "scale_range": [2.0, 1.0]}}, "make no sense"),
    "betas": ({"optimizer": {"betas": [0.9, 1.0]}}, "optimizer.betas.1: .*less than 1"),
    "half a GPU": ({"resources": {"gpus_per_worker": 0.5}}, "gpus_per_worker: must be a"),
    "fp16": ({"precision": "fp16"}, "precision: fp16 is no option any more"),
    "output": ({"output": {"uri": "https://example.org/run"}}, "nothing can be written"),
    "output is source": (
        {"data": {"train": [{"uri": "/data/run"}]}, "model": {"variant": "swin_t", "classes": ["a"]}},
        "one of data.train",
    ),
}


@pytest.mark.parametrize(("sections", "message"), BAD.values(), ids=BAD)
def test_refused(tmp_path: Path, sections: dict[str, Any], message: str) -> None:
    path = tmp_path / "train.yaml"
    path.write_text(yaml.safe_dump(values(**sections)))
    with pytest.raises(ConfigError, match=message):
        load_config(TrainConfig, path)


def test_settings_of_the_trained_model() -> None:
    model = config(model={"variant": "swin_t", "short_side": 160, "proposals": 200}).model
    assert model.settings(TestSettings()) == TestSettings(short_side=160, proposals=200, proposals_per_level=200)
    model = config(model={"variant": "swin_t", "short_side": 1600}).model
    with pytest.raises(ConfigError, match="short_side 1600 exceeds long_side 1333: set both"):
        model.settings(TestSettings())


@pytest.mark.parametrize(
    ("sections", "same"),
    [
        ({"log_every": 1}, True),
        ({"output": {"uri": "/elsewhere", "save_every": 3}}, True),
        ({"activation_checkpointing": True}, True),
        ({"resources": {"cpus_per_worker": 2.0}}, True),
        ({"resources": {"workers": 2}}, False),
        ({"seed": 1}, False),
        ({"schedule": {"epochs": 12, "steps": [8]}}, False),
        ({"data": {"train": [COCO], "batch_size": 4}}, False),
        ({"data": {"train": [{**COCO, "uri": "/data/other.json"}]}}, False),
    ],
)
def test_what_a_run_that_goes_on_must_share(sections: dict[str, Any], same: bool) -> None:
    content = config(**sections).content()
    assert (content == config().content()) is same
    assert json.loads(json.dumps(content)) == content


def test_secrets_stay_out() -> None:
    signed = "https://host/train.json?X-Amz-Signature=SECRET"
    found = config(data={"train": [{"uri": signed, "image_root": "/data"}], "validation": {**COCO, "uri": signed}})
    assert "SECRET" not in json.dumps(found.model_dump(mode="json"))
    assert "SECRET" not in json.dumps(found.content())
