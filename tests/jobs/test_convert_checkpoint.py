from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from jobs.convert_checkpoint import main
from pipeline.model.architectures import KNOWN_MODELS
from pipeline.model.cascade_mask_rcnn.layouts import to_native
from pipeline.model.files.backbones import read_backbone
from pipeline.model.files.checkpoints import Checkpoint, load_checkpoint
from pipeline.model.predictor import load_model
from testing.small_model import TINY, TINY_SETTINGS
from tests.jobs.conftest import CATEGORIES
from tests.model.golden_weights import official_weights, save_mmdet3, save_modelscope, save_official

State = dict[str, Tensor]
DEMO_MODEL = Path(__file__).parents[2] / "jobs" / "demo_model.safetensors"
SAVERS = {"official": save_official, "modelscope": save_modelscope, "mmdet3": save_mmdet3}


@pytest.fixture(scope="module")
def state() -> State:
    """Weights of the tiny model under the official names."""
    return official_weights(TINY)


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("classes") / "names.json"
    path.write_text(json.dumps({"categories": [{"id": c.id, "name": c.name} for c in CATEGORIES]}), encoding="utf-8")
    return path


def convert(*arguments: str | Path) -> int:
    return main([str(argument) for argument in arguments])


def test_figures_of_a_validation_are_two(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert convert(DEMO_MODEL, tmp_path / "out.safetensors") == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("source:")]
    said = "start random weights, iteration 4500, validation epoch 6, iteration 4500, bbox_mAP 0.732, segm_mAP 0.666"
    assert line.split(maxsplit=1)[1] == said
    assert load_checkpoint(tmp_path / "out.safetensors").source == load_checkpoint(DEMO_MODEL).source


@pytest.mark.parametrize("layout", SAVERS)
def test_every_detector_layout(
    layout: str, state: State, classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = SAVERS[layout](state, tmp_path / "source.pth")
    out = tmp_path / "new" / "out.safetensors"
    assert convert(source, out, "--classes", classes) == 0
    converted = load_checkpoint(out)
    native = to_native(state, "official")
    assert converted.weights.keys() == native.keys()
    assert all(torch.equal(converted.weights[key], native[key]) for key in native)
    assert [c.id for c in converted.categories] == [3, 7, 12]
    said = capsys.readouterr().out
    for fact in (f"layout {'mmdet3' if layout == 'mmdet3' else 'official'}", converted.weights_sha256, "embed_dim 8"):
        assert fact in said
    assert f"sha256 {hashlib.sha256(source.read_bytes()).hexdigest()}" in said
    assert "classes:    3 (cat, Äpfel, traffic light)" in said


def test_own_file_with_other_settings(tiny_model: Path, tiny_checkpoint: Checkpoint, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    options = ["--short-side", "32", "--score-threshold", "0.2", "--max-detections", "7"]
    assert convert(tiny_model, out, *options) == 0
    converted = load_checkpoint(out)
    assert converted.weights_sha256 == tiny_checkpoint.weights_sha256
    assert converted.source == tiny_checkpoint.source
    assert converted.categories == CATEGORIES
    settings = converted.settings
    assert (settings.short_side, settings.score_threshold, settings.max_detections) == (32, 0.2, 7)
    assert settings.long_side == TINY_SETTINGS.long_side


def test_parameter_count(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    convert(tiny_model, tmp_path / "out.safetensors")
    with safe_open(tiny_model, framework="pt") as file:
        buffers = ("running_mean", "running_var", "num_batches_tracked")
        count = sum(file.get_tensor(k).numel() for k in file.keys() if not k.endswith(buffers))  # noqa: SIM118
    assert f"parameters: {count:,}\n" in capsys.readouterr().out


def microsoft_backbone(state: State) -> State:
    """As microsoft publishes a classifier: no prefix, no output norms, a head of its own."""
    backbone = {k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")}
    backbone = {k: v for k, v in backbone.items() if k[:5] not in {"norm0", "norm1", "norm2", "norm3"}}
    width = TINY.embed_dim * 8
    return backbone | {"norm.weight": torch.ones(width), "head.weight": torch.ones(10, width)}


def test_backbone(state: State, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "swin.pth", tmp_path / "backbone.safetensors"
    torch.save({"model": microsoft_backbone(state)}, source)
    assert convert(source, out) == 0
    converted = read_backbone(out)
    native = to_native(state, "official")
    expected = {k: v for k, v in native.items() if k.startswith("backbone.") and not k.startswith("backbone.norms.")}
    assert converted.weights.keys() == expected.keys()
    assert all(torch.equal(converted.weights[key], expected[key]) for key in expected)
    said = capsys.readouterr().out
    for fact in ("training starts from it", "layout microsoft", "embed_dim 8", converted.weights_sha256):
        assert fact in said
    assert f"parameters: {sum(v.numel() for v in expected.values()):,}\n" in said
    assert convert(out, tmp_path / "again.safetensors") == 0
    assert read_backbone(tmp_path / "again.safetensors").source == converted.source


def test_known_model_by_name(state: State, classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASKFLEET_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    save_official(state, tmp_path / "cache" / KNOWN_MODELS["swin_b_coco"].file_name)
    assert convert("swin_b_coco", tmp_path / "out.safetensors", "--classes", classes) == 0


def test_refuses_to_overwrite(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"precious")
    assert convert(tiny_model, out) == 2
    assert "--force" in capsys.readouterr().err
    assert out.read_bytes() == b"precious"
    assert convert(tiny_model, out, "--force") == 0
    assert load_checkpoint(out).variant == TINY


def test_onto_itself(tiny_model: Path, tiny_checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(tiny_model.read_bytes())
    assert convert(path, path, "--force", "--short-side", "48") == 0
    assert load_checkpoint(path).weights_sha256 == tiny_checkpoint.weights_sha256


def unnamed_classes(folder: Path, state: State, model: Path) -> list[str | Path]:
    return [save_modelscope(state, folder / "m.pth"), folder / "o.safetensors"]


def wrong_number_of_classes(folder: Path, state: State, model: Path) -> list[str | Path]:
    (folder / "names.txt").write_text("cat\ndog")
    return [model, folder / "o.safetensors", "--classes", folder / "names.txt"]


def classes_of_a_backbone(folder: Path, state: State, model: Path) -> list[str | Path]:
    torch.save(microsoft_backbone(state), folder / "m.pth")
    (folder / "names.txt").write_text("cat\ndog")
    return [folder / "m.pth", folder / "o.safetensors", "--classes", folder / "names.txt"]


def part_of_a_backbone(folder: Path, state: State, model: Path) -> list[str | Path]:
    weights = {k: v for k, v in microsoft_backbone(state).items() if "layers.2" not in k}
    torch.save(weights, folder / "m.pth")
    return [folder / "m.pth", folder / "o.safetensors"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (lambda folder, state, model: [model, folder / "o.pth"], "end its name in .safetensors"),
        (lambda folder, state, model: ["swin_c", folder / "o.safetensors"], "neither a file nor a known model"),
        (lambda folder, state, model: [model, folder / "o.safetensors", "--short-side", "0"], "short_side must be"),
        (unnamed_classes, "give their names"),
        (wrong_number_of_classes, "2 categories for a model of 3 classes"),
        (classes_of_a_backbone, "is a backbone alone"),
        (part_of_a_backbone, "not a Swin backbone, or only a part of one"),
    ],
)
def test_refused(
    arguments: Callable[[Path, State, Path], list[str | Path]],
    message: str,
    state: State,
    tiny_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert convert(*arguments(tmp_path, state, tiny_model)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "o.safetensors").exists()


def test_converted_model_predicts_the_same(state: State, classes: Path, tmp_path: Path) -> None:
    source, out = save_mmdet3(state, tmp_path / "source.pth"), tmp_path / "out.safetensors"
    convert(source, out, "--classes", classes, "--short-side", "64", "--long-side", "96", "--score-threshold", "0")
    converted, direct = load_model(out, "cpu"), load_model(source, "cpu", categories=CATEGORIES)
    direct.settings = converted.settings
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    (one,), (other,) = converted.predict([image]), direct.predict([image])
    assert len(one) > 0
    np.testing.assert_array_equal(one.boxes, other.boxes)
    assert one.rle() == other.rle()
