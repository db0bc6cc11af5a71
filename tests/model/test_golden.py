"""Equal to the reference implementation: see golden/README.md for where the numbers come from."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.images.resize import resize_bilinear_uint8
from pipeline.images.sizes import scaled_size
from pipeline.model.detections import Detections
from pipeline.model.files.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from pipeline.model.predictor import Predictor, load_model
from pipeline.model.speed import SpeedOptions
from testing.preprocessed import preprocessed
from tests.model.compare import Found, assert_same, mask_iou, match
from tests.model.golden_cases import CASES, Golden, golden
from tests.model.golden_weights import digest, save_mmdet3, save_modelscope, save_official

NEEDS_ALL_CORES = True
KIT = Path(__file__).parents[3] / "shared" / "parity"


@pytest.fixture(scope="module")
def official(golden_state: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Predictor]:
    """The golden weights by way of an official file."""
    path = save_official(golden_state, tmp_path_factory.mktemp("golden") / "official.pth")
    yield load_model(path, device="cpu")
    path.unlink()


@pytest.fixture(scope="module")
def predict(official: Predictor) -> Callable[[str], Detections]:
    """Detections of a case, computed once."""

    @lru_cache
    def run(case: str) -> Detections:
        official.settings = golden(case).settings
        return official.predict([golden(case).image])[0]

    return run


@dataclass(frozen=True)
class Maps:
    """The stages of the model up to the proposals."""

    backbone: list[Tensor]
    pyramid: list[Tensor]
    objectness: list[Tensor]
    deltas: list[Tensor]
    proposals: Found


@pytest.fixture(scope="module")
def compute_maps(official: Predictor) -> Callable[[str], Maps]:
    @lru_cache
    @torch.inference_mode()
    def run(case: str) -> Maps:
        pixels, size = preprocessed(golden(case).image, golden(case).settings)
        backbone = official.detector.backbone(pixels[None], official.detector.backbone.windows(pixels.shape[-2:]))
        pyramid = official.detector.neck(backbone)
        logits, deltas = zip(*official.detector.rpn.head(pyramid), strict=True)
        sizes = torch.tensor([size], dtype=torch.float32)
        plan = official.detector.plan(pixels.shape[-2:])
        found = official.detector.rpn(pyramid, plan.anchors, sizes, golden(case).settings)
        boxes, scores = (values[found.valid].numpy() for values in (found.boxes, found.scores))
        proposals = Found(boxes, scores, np.zeros(len(boxes), int))
        return Maps(backbone, pyramid, [as_map(x[..., None]) for x in logits], [as_map(x) for x in deltas], proposals)

    def as_map(values: Tensor) -> Tensor:
        """(1, A, n) in row, column, ratio order -> the order of a (1, 3 * n, H, W) map, flattened."""
        return values[0].reshape(-1, 3 * values.shape[-1]).T

    return run


def assert_samples(case: str, name: str, maps: list[Tensor]) -> None:
    """Golden samples of each level's map within 1e-5 of the level's standard deviation."""
    arrays = golden(case).arrays
    for level, values in enumerate(maps):
        key = f"{name}{level}"
        assert values.numel() == np.prod(arrays[f"{key}_shape"])
        sample = values.reshape(-1)[torch.from_numpy(arrays[f"{key}_idx"])].numpy()
        error = np.abs(sample - arrays[f"{key}_val"]).max() / arrays[f"{key}_std"]
        assert error < 1e-5, f"{key}: {error:.1e}"


def matched_mask_iou(data: Golden, found: Detections) -> list[float]:
    """Mask IoU of each pair of detections at the resolution of the image."""
    ours, pairs = found.rle(), match(data.found, found)
    return mask_iou([data.rles[i] for i, _ in pairs], [ours[j] for _, j in pairs])


def test_generated_weights_are_those_of_the_golden_data(golden_state: dict[str, Tensor]) -> None:
    for case in CASES:
        assert digest(golden_state) == golden(case).meta["weights_sha256"]


@pytest.mark.parametrize("case", CASES)
def test_resized_pixels(case: str) -> None:
    data = golden(case)
    size = scaled_size(data.image.shape[:2], data.settings.short_side, data.settings.long_side)
    assert size == tuple(data.meta["img_shape"])
    resized = resize_bilinear_uint8(torch.tensor(data.image).permute(2, 0, 1), size)
    rgb = data.arrays["resized"][:, :, ::-1]
    assert np.count_nonzero(resized.permute(1, 2, 0).numpy() != rgb) == 0


@pytest.mark.parametrize("case", CASES)
def test_input(case: str) -> None:
    data = golden(case)
    pixels, _ = preprocessed(data.image, data.settings)
    assert (1, *pixels.shape) == tuple(data.arrays["input_shape"])
    sample = pixels.reshape(-1)[torch.from_numpy(data.arrays["input_idx"])].numpy()
    assert np.abs(sample - data.arrays["input_val"]).max() <= 3e-7


@pytest.mark.parametrize("case", CASES)
def test_feature_maps(compute_maps: Callable[[str], Maps], case: str) -> None:
    maps = compute_maps(case)
    for level, values in enumerate(maps.backbone):
        assert values.shape == tuple(golden(case).arrays[f"feat{level}_shape"])
    assert_samples(case, "feat", maps.backbone)
    assert_samples(case, "fpn", maps.pyramid)


@pytest.mark.parametrize("case", CASES)
def test_proposals(compute_maps: Callable[[str], Maps], case: str) -> None:
    maps, arrays = compute_maps(case), golden(case).arrays
    assert_samples(case, "rpn_cls", maps.objectness)
    assert_samples(case, "rpn_reg", maps.deltas)
    reference = Found(arrays["proposals"], arrays["prop_scores"], np.zeros(len(arrays["proposals"]), int))
    best = Found(*(values[:50] for values in reference))
    assert len(match(best, Found(*(values[:60] for values in maps.proposals)), max_score=1e-4)) == 50
    # All of the thousand: the last places go by scores that differ in the last digits.
    assert len(maps.proposals.scores) == len(reference.scores) == 1000
    assert len(match(reference, maps.proposals, max_score=1e-4)) >= 998


@pytest.mark.parametrize("case", CASES)
def test_detections(predict: Callable[[str], Detections], case: str) -> None:
    difference = assert_same(golden(case).found, predict(case))
    assert difference.box_px < 0.01
    assert difference.score < 5e-5


@pytest.mark.parametrize("case", CASES)
def test_masks(predict: Callable[[str], Detections], case: str) -> None:
    data, found = golden(case), predict(case)
    overlaps = matched_mask_iou(data, found)
    assert np.mean(overlaps) >= 0.999
    assert min(overlaps) >= 0.99
    ours = dict(match(data.found, found))
    for i, probabilities in enumerate(data.arrays["mask_prob_top"]):
        np.testing.assert_allclose(found.masks[ours[i]], probabilities, atol=1e-4)


def save_own(state: dict[str, Tensor], path: Path) -> Path:
    """Our own file, by way of an official one."""
    save_checkpoint(load_checkpoint(save_official(state, path.with_suffix(".pth"))), path)
    path.with_suffix(".pth").unlink()
    return path


OTHER_FILES = {
    "modelscope": (save_modelscope, "pytorch_model.pt"),
    "mmdet3": (save_mmdet3, "mmdet3.pth"),
    "our own": (save_own, "model.safetensors"),
}


@pytest.mark.parametrize(("save", "name"), OTHER_FILES.values(), ids=OTHER_FILES.keys())
def test_other_layouts_detect_the_same(
    save: Callable[[dict[str, Tensor], Path], Path],
    name: str,
    golden_state: dict[str, Tensor],
    official: Predictor,
    tmp_path: Path,
) -> None:
    data = golden(CASES[1])
    path = save(golden_state, tmp_path / name)
    predictor = load_model(path, device="cpu", settings=data.settings)
    path.unlink()
    assert predictor.weights_sha256 == official.weights_sha256
    found = predictor.predict([data.image])[0]
    assert_same(data.found, found)
    assert np.mean(matched_mask_iou(data, found)) >= 0.999


def test_plain_model_without_rewrites_detects_the_same(golden_checkpoint: Checkpoint) -> None:
    data = golden(CASES[1])
    predictor = load_model(golden_checkpoint, "cpu", settings=data.settings, speed=SpeedOptions.none())
    assert_same(data.found, predictor.predict([data.image])[0])


@pytest.mark.slow
@pytest.mark.skipif(not (KIT / "check_parity.py").exists(), reason="the parity kit does not lie beside the project")
def test_parity_kit(tmp_path: Path) -> None:
    numbers, adapter = tmp_path / "numbers.json", Path(__file__).parents[1] / "parity_adapter.py"
    command = [sys.executable, KIT / "check_parity.py", "--adapter", adapter, "--json", numbers]
    command += ["--cases", "tiny_coffee", "tiny_rocket"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    cases = json.loads(numbers.read_text())
    assert {case["case"] for case in cases} == {"tiny_coffee_480x320", "tiny_rocket_667x400"}
    for case in cases:
        assert case["gold_frac"] == case["pred_frac"] == 1
        assert case["prop"] == "50/50"
        assert np.mean(case["ious"]) >= 0.999
