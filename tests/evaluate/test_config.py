from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from pipeline.config.base import ConfigError
from pipeline.config.loading import config_schema, load_config
from pipeline.evaluate.config import EvaluateConfig
from pipeline.storage.uris import Uri

CONFIGS = Path(__file__).parents[2] / "configs"
VALUES: dict[str, Any] = {
    "predictions": {"uri": "s3://bucket/run"},
    "ground_truth": {"uri": "truth.json"},
    "output": {"uri": "s3://bucket/evaluation"},
}


def load(folder: Path, **sections: dict[str, Any]) -> EvaluateConfig:
    path = folder / "evaluate.yaml"
    path.write_text(yaml.safe_dump({**VALUES, **sections}))
    return load_config(EvaluateConfig, path)


def test_ready_config_is_valid_here_and_in_editors() -> None:
    path = CONFIGS / "evaluate.yaml"
    assert load_config(EvaluateConfig, path).metrics.main_iou_type == "segm"
    assert path.read_text().splitlines()[0] == "# yaml-language-server: $schema=evaluate.schema.json"
    jsonschema.validate(yaml.safe_load(path.read_text()), config_schema(EvaluateConfig))


def test_defaults_are_coco_s(tmp_path: Path) -> None:
    config = load(tmp_path)
    assert config.metrics.iou_types == ("bbox", "segm")
    assert config.metrics.protocol().max_dets == (1, 10, 100)
    assert config.ground_truth.images == "all"


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"metrics": {"iou_types": []}}, "metrics.iou_types: .*at least 1"),
        ({"metrics": {"iou_types": ["segm", "segm"]}}, "'segm' is listed twice"),
        ({"metrics": {"iou_types": ["keypoints"]}}, "metrics.iou_types"),
        ({"metrics": {"max_dets": [1, 100]}}, "metrics.max_dets"),
        ({"metrics": {"max_dets": [100, 10, 1]}}, "three ascending"),
        ({"metrics": {"max_dets": [1, 10, 100000]}}, "at most 65535"),
        ({"analysis": {"wanted_precision": 1.0}}, "analysis.wanted_precision"),
        ({"output": {"uri": "s3://bucket/run/"}}, "output.uri is where the predictions lie"),
        ({"output": {"uri": "s3://bucket/run/data/evaluation"}}, "output.uri is where the predictions lie"),
        ({"output": {"uri": "https://host/evaluation"}}, "nothing can be written to http"),
        ({"predictions": {"uri": "s3://key:secret@bucket/run"}}, "predictions.uri"),
        ({"gallery": {"imags_per_class": 1}}, "did you mean 'images_per_class'"),
    ],
)
def test_what_is_refused(tmp_path: Path, sections: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load(tmp_path, **sections)
    assert "secret" not in str(caught.value)


def test_an_evaluation_may_lie_beside_the_data(tmp_path: Path) -> None:
    assert load(tmp_path, output={"uri": "s3://bucket/run/evaluation"}).output.uri == Uri("s3://bucket/run/evaluation")


def test_what_is_written_down_holds_no_secrets(tmp_path: Path) -> None:
    signed = "https://host/truth.json?X-Amz-Signature=abc"
    roots = {"images": {"allowed_roots": ["https://host/a?token=abc"]}}
    values = load(tmp_path, ground_truth={"uri": signed}, gallery=roots).model_dump(mode="json")
    assert "abc" not in str(values)
    assert values["ground_truth"]["uri"].startswith("https://host/truth.json")
