from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs import demo
from pipeline.model.checkpoints import load_checkpoint


def test_scenes_are_reproducible_and_differ() -> None:
    scenes = [demo.render_scene(seed) for seed in (0, 1, 0)]
    assert scenes[0].shape == (240, 320, 3)
    assert scenes[0].dtype == np.uint8
    np.testing.assert_array_equal(scenes[0], scenes[2])
    assert (scenes[0] != scenes[1]).any()


def test_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "demo"
    assert demo.main(["--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "weights are random" in said
    assert str(out / "contact_sheet.png") in said
    content = json.loads((out / "predictions" / "predictions.json").read_text())
    assert len(content["images"]) == 6
    assert all(sum(a["image_id"] == image["id"] for a in content["annotations"]) for image in content["images"])
    assert content["info"]["weights_sha256"] == load_checkpoint(out / "random_model.safetensors").weights_sha256
    sheet = Image.open(out / "contact_sheet.png")
    assert sheet.width > 3 * 320
    drawn = [np.array(Image.open(path)) for path in sorted((out / "predictions").glob("*.png"))]
    assert all((image != demo.render_scene(seed)).any() for seed, image in enumerate(drawn))
