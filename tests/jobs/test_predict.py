from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from jobs import predict
from pipeline.model.cascade_mask_rcnn.detector import CascadeMaskRCNN
from pipeline.model.detector import NotFinite
from pipeline.model.files.checkpoints import Checkpoint
from pipeline.model.predictor import load_model
from testing.small_model import TINY_SETTINGS
from tests.jobs.conftest import CATEGORIES
from tests.model.fake_cuda import FakeCuda


def picture(height: int, width: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four good pictures (two of them with one stem) and three bad files."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "sub").mkdir()
    for i, (name, size) in enumerate({"a.png": (48, 64), "b.png": (64, 48), "sub/a.png": (40, 40)}.items()):
        Image.fromarray(picture(*size, seed=i)).save(folder / name)
    Image.fromarray(picture(30, 50, seed=3)[..., 0]).save(folder / "grey.jpg")
    (folder / "empty.jpg").touch()
    (folder / "text.jpg").write_text("not a picture")
    (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:500])
    return folder


def run(out: Path, *arguments: str | Path) -> tuple[int, dict[str, Any]]:
    code = predict.main([*map(str, arguments), "--out", str(out), "--device", "cpu"])
    result = out / "predictions.json"
    return code, json.loads(result.read_text(encoding="utf-8")) if result.exists() else {}


Outcome = tuple[int, dict[str, Any], Path]


@pytest.fixture(scope="module")
def outcome(photos: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """Exit code, predictions.json and folder of a run over everything in ``photos`` and a missing file."""
    out = tmp_path_factory.mktemp("out")
    return *run(out, photos, photos / "gone.jpg", "--model", tiny_model, "--batch-size", "2"), out


class TestGoodAndBadFiles:
    def test_bad_files_are_listed_and_stop_nothing(self, outcome: Outcome) -> None:
        code, content, _ = outcome
        assert code == 1
        assert {Path(f["file_name"]).name: f["error_code"] for f in content["failed"]} == {
            "cut.png": "corrupt_image",
            "empty.jpg": "empty_object",
            "text.jpg": "not_an_image",
            "gone.jpg": "not_found",
        }
        assert [Path(i["file_name"]).name for i in content["images"]] == ["a.png", "b.png", "grey.jpg", "a.png"]

    def test_pycocotools_reads_it(self, outcome: Outcome) -> None:
        _, content, out = outcome
        coco = COCO(out / "predictions.json")
        assert len(coco.anns) == len(content["annotations"]) == 4 * TINY_SETTINGS.max_detections
        assert [c["name"] for c in coco.loadCats([3, 7, 12])] == ["cat", "Äpfel", "traffic light"]
        for annotation in coco.anns.values():
            image = coco.imgs[annotation["image_id"]]
            mask = coco.annToMask(annotation)
            assert mask.shape == (image["height"], image["width"])
            assert mask.sum() == annotation["area"]

    def test_every_picture_is_drawn_under_its_own_name(self, outcome: Outcome) -> None:
        _, content, out = outcome
        names = [image["picture"] for image in content["images"]]
        assert sorted(p.name for p in out.glob("*.png")) == sorted(names)
        assert len(set(names)) == 4
        for image in content["images"]:
            assert Image.open(out / image["picture"]).size == (image["width"], image["height"])

    def test_info_says_where_it_comes_from(self, outcome: Outcome, tiny_checkpoint: Checkpoint) -> None:
        info = outcome[1]["info"]
        assert info["weights_sha256"] == tiny_checkpoint.weights_sha256
        assert info["variant"]["name"] == "tiny"
        assert info["settings"]["short_side"] == 64
        assert (info["precision"], info["device"]) == ("fp32", "cpu")
        assert info["versions"]["torch"] == torch.__version__

    def test_annotations_are_the_predictor_s(self, outcome: Outcome, tiny_checkpoint: Checkpoint) -> None:
        image = next(i for i in outcome[1]["images"] if i["file_name"].endswith("b.png"))
        found = load_model(tiny_checkpoint, "cpu").predict([picture(64, 48, seed=1)])[0]
        annotations = [a for a in outcome[1]["annotations"] if a["image_id"] == image["id"]]
        np.testing.assert_allclose([a["score"] for a in annotations], found.scores, rtol=1e-5)
        assert [a["category_id"] for a in annotations] == [CATEGORIES[label].id for label in found.labels]


def test_all_good(photos: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, content = run(tmp_path, photos / "a.png", photos / "b.png", "--model", tiny_model)
    assert (code, content["failed"]) == (0, [])
    lines = capsys.readouterr().out.splitlines()
    assert f"{photos / 'a.png'}: 5 detections, " in lines[0]
    assert lines[2].startswith("2 images, 10 detections, 0 failed in ")


def test_draw_threshold_concerns_the_picture_only(photos: Path, tiny_model: Path, tmp_path: Path) -> None:
    _, content = run(tmp_path, photos / "a.png", "--model", tiny_model, "--draw-threshold", "1")
    assert len(content["annotations"]) == 5
    np.testing.assert_array_equal(Image.open(tmp_path / "a.png"), picture(48, 64, seed=0))


def test_parts_can_be_left_out(photos: Path, tiny_model: Path, tmp_path: Path) -> None:
    plain = ["--no-boxes", "--no-labels", "--no-scores", "--no-masks"]
    common = [photos / "a.png", "--model", tiny_model, "--draw-threshold", "0"]
    run(tmp_path / "all", *common)
    run(tmp_path / "none", *common, *plain)
    original = picture(48, 64, seed=0)
    np.testing.assert_array_equal(Image.open(tmp_path / "none" / "a.png"), original)
    assert (np.asarray(Image.open(tmp_path / "all" / "a.png")) != original).any()


def test_input_size_and_precision(photos: Path, tiny_model: Path, tmp_path: Path) -> None:
    sizes = ["--short-side", "32", "--long-side", "50", "--precision", "bf16"]
    code, content = run(tmp_path, photos / "a.png", "--model", tiny_model, *sizes)
    assert code == 0
    assert content["info"]["precision"] == "bf16"
    assert (content["info"]["settings"]["short_side"], content["info"]["settings"]["long_side"]) == (32, 50)
    assert content["info"]["settings"]["max_detections"] == 5


def test_second_run_does_not_read_the_first_ones_pictures(photos: Path, tiny_model: Path, tmp_path: Path) -> None:
    Image.open(photos / "a.png").save(tmp_path / "a.png")
    for _ in range(2):
        _, content = run(tmp_path / "out", tmp_path, "--model", tiny_model)
        assert len(content["images"]) == 1


@pytest.mark.parametrize(
    ("error", "code_of_row", "message"),
    [
        (torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate"), "out_of_memory", "CUDA out of memory."),
        (RuntimeError("shapes differ"), "model_error", "shapes differ"),
        (NotFinite("NaN in the proposals"), "not_finite", "NaN in the proposals"),
    ],
    ids=["memory", "model", "not finite"],
)
def test_one_image_that_the_model_fails_on(
    photos: Path,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    code_of_row: str,
    message: str,
) -> None:
    forward = CascadeMaskRCNN.forward

    def failing_on_portraits(self: CascadeMaskRCNN, images: torch.Tensor, *args: Any) -> Any:
        if images.shape[2] > images.shape[3]:
            raise error
        return forward(self, images, *args)

    monkeypatch.setattr(CascadeMaskRCNN, "forward", failing_on_portraits)
    code, content = run(tmp_path, photos / "a.png", photos / "b.png", photos / "grey.jpg", "--model", tiny_model)
    assert code == 1
    assert [i["picture"] for i in content["images"]] == ["a.png", "grey.png"]
    assert content["failed"] == [
        {
            "file_name": (photos / "b.png").as_posix(),
            "error_code": code_of_row,
            "error_message": message,
        }
    ]


def test_a_lost_device_ends_the_job(
    photos: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The pictures after it are not refused one by one."""

    fail = FakeCuda(monkeypatch).lose("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED", {0})

    def lose(*_: Any) -> Any:
        raise fail([0]) or AssertionError

    monkeypatch.setattr(CascadeMaskRCNN, "forward", lose)
    arguments = [photos / "a.png", photos / "b.png", "--model", tiny_model, "--out", tmp_path]
    assert predict.main(list(map(str, arguments))) == 1
    assert "device cuda is lost: RuntimeError: cuDNN error" in capsys.readouterr().err
    assert not (tmp_path / "predictions.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["gone.png", "--model", "MODEL"], "no image files: gone.png", id="no image"),
        pytest.param(["IMAGE", "--model", "swin_b_coc"], "Did you mean swin_b_coco?", id="unknown model"),
        pytest.param(["IMAGE", "--model", "IMAGE"], "a.png: not a checkpoint", id="not a checkpoint"),
        pytest.param(["IMAGE", "--model", "MODEL", "--device", "toaster"], "toaster", id="unknown device"),
        pytest.param(["IMAGE", "--model", "MODEL", "--classes", "gone.txt"], "gone.txt", id="no class names"),
    ],
)
def test_what_cannot_start(
    photos: Path,
    tiny_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    real = {"IMAGE": str(photos / "a.png"), "MODEL": str(tiny_model)}
    command = ["--device", "cpu", *(real.get(a, a) for a in arguments), "--out", str(tmp_path)]
    assert predict.main(command) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "predictions.json").exists()


@pytest.mark.parametrize("arguments", [[], ["a.png", "--out", "x"], ["a.png", "--model", "m", "--batch-size", "0"]])
def test_usage_errors(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as error:
        predict.main(arguments)
    assert error.value.code == 2


def test_masks_decode_from_the_json_alone(photos: Path, tiny_model: Path, tmp_path: Path) -> None:
    _, content = run(tmp_path, photos / "a.png", "--model", tiny_model)
    rles = [a["segmentation"] for a in content["annotations"]]
    assert all(isinstance(rle["counts"], str) for rle in rles)
    assert coco_mask.decode(rles).shape == (48, 64, 5)


@pytest.mark.parametrize("name", ["a.png", "predictions.json"])
def test_a_file_of_the_user_is_not_overwritten(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """Above all the picture itself, where the results go into its folder."""
    Image.fromarray(picture(48, 64, seed=0)).save(tmp_path / "a.png")
    (tmp_path / "predictions.json").write_text('{"the user\'s": 1}')
    out = tmp_path if name == "a.png" else tmp_path / "out"
    if name == "predictions.json":
        assert run(out, tmp_path / "a.png", "--model", tiny_model)[0] == 0
        assert run(out, tmp_path / "a.png", "--model", tiny_model)[0] == 0  # over its own results
        (out / name).write_text('{"the user\'s": 1}')
    else:
        (out / "predictions.json").unlink()
    before = {path: path.read_bytes() for path in out.iterdir() if path.is_file()}
    code, _ = run(out, tmp_path / "a.png", "--model", tiny_model)
    assert code == 2
    assert f"{out / name} is in the way" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in out.iterdir() if path.is_file()} == before
