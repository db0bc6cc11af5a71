"""The demo goes through the whole path, and a second run finds nothing to do."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.dataset
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


@pytest.mark.ray
def test_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "demo"
    assert demo.main(["--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "weights are random" in said
    assert str(out / "contact_sheet.png") in said
    rows = {row["image_id"]: row for row in pyarrow.dataset.dataset(out / "run" / "data").to_table().to_pylist()}
    assert len(rows) == demo.NUM_SCENES + 1
    assert rows["damaged.png"]["error_code"] == "corrupt_image"
    assert all(row["detections"] for name, row in rows.items() if name != "damaged.png")
    report = json.loads((out / "run" / "run.json").read_text())
    assert report["images"] == {"manifest": demo.NUM_SCENES + 1, "annotated": demo.NUM_SCENES, "failed": 1}
    weights = load_checkpoint(out / "random_model.safetensors").weights_sha256
    assert report["identity"]["weights_sha256"] == weights
    assert Image.open(out / "contact_sheet.png").width > 4 * 320
    assert demo.main(["--out", str(out)]) == 0
    assert json.loads((out / "run" / "run.json").read_text()) == report
