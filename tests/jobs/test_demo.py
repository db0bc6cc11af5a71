"""The demo annotates and evaluates, finds what was rendered, and a second run has nothing to annotate."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pyarrow.dataset
import pytest
from PIL import Image

from jobs import demo
from pipeline.model.files.checkpoints import load_checkpoint
from pipeline.synthetic.scenes import CATEGORIES

# What the model was measured to reach on these scenes, less what other versions of torch may change.
MASK_AP = 0.60
ROOT = Path(__file__).parents[2]
NUM_SCENES = 64


@pytest.mark.ray
def test_demo(
    ray_cluster: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With fewer scenes than a demo of a minute has."""
    monkeypatch.setattr(demo, "NUM_SCENES", NUM_SCENES)
    monkeypatch.setattr(demo, "DAMAGED", NUM_SCENES - 1)
    out = tmp_path / "demo"
    assert demo.main(["--out", str(out)]) == 0
    said = capsys.readouterr().out
    rows = {row["image_id"]: row for row in pyarrow.dataset.dataset(out / "annotations/data").to_table().to_pylist()}
    assert len(rows) == NUM_SCENES
    assert rows[NUM_SCENES]["error_code"] == "corrupt_image"
    run = json.loads((out / "annotations/run.json").read_text())
    assert run["images"] == {"manifest": NUM_SCENES, "annotated": NUM_SCENES - 1, "failed": 1, "deleted": 0}
    assert run["identity"]["weights_sha256"] == load_checkpoint(demo.MODEL).weights_sha256
    mask_ap = json.loads((out / "evaluation/metrics.json").read_text())["mmdet"]["segm_mAP"]
    assert mask_ap >= MASK_AP
    assert f"mask AP {mask_ap:.3f}" in said
    assert str(out / "contact_sheet.png") in said
    assert "<svg" in (out / "evaluation/report.html").read_text()
    assert Image.open(out / "contact_sheet.png").width > 4 * 320
    assert demo.main(["--out", str(out)]) == 0
    again = json.loads((out / "annotations/run.json").read_text())
    assert again == run
    assert json.loads((out / "evaluation/metrics.json").read_text())["mmdet"]["segm_mAP"] == mask_ap


@pytest.mark.ray
@pytest.mark.slow
def test_its_log_has_no_line_but_ours(tmp_path: Path) -> None:
    """Two jobs as a process, on a Ray of their own: what that says of runs without errors looks like errors."""
    code = (
        "import sys; from jobs import demo; demo.NUM_SCENES, demo.DAMAGED = 16, 15; sys.exit(demo.main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "--out", str(tmp_path / "demo")]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False)
    assert ended.returncode == 0, ended.stderr
    ours = re.compile(r"[\d-]{10} [\d:,]{12} (INFO|WARNING) (jobs|pipeline)[.\w]*: .*")
    assert [line for line in ended.stderr.splitlines() if not ours.fullmatch(line)] == []
    assert "jobs.evaluate: exit code 0" in ended.stderr.splitlines()[-1]


def test_the_shipped_model_is_one_of_the_training_job() -> None:
    model = load_checkpoint(demo.MODEL)
    assert model.categories == CATEGORIES
    assert model.source["start"] == "random weights"
    assert model.source["validation"]["segm_mAP"] >= MASK_AP
    assert demo.MODEL.stat().st_size < 10 << 20
