"""A nightly run that compares what it made with what was there. No Ray."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from jobs.annotate import main
from pipeline.annotate.summary import page
from pipeline.annotate.summary.sample import Sample
from testing.rounds_without_ray import rounds_without_ray
from testing.small_model import save_tiny
from tests.compare.test_run import NAMES, rows, without


def test_nights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any, capsys: Any) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(page, "draw_sample", lambda *_: Sample())
    model, manifest, out = tmp_path / "tiny.safetensors", tmp_path / "manifest.parquet", tmp_path / "out"
    save_tiny(model, enumerate(NAMES, 1))
    config = tmp_path / "nightly.yaml"
    values = {
        "manifest": {"uri": str(manifest)},
        "model": {"checkpoint": str(model)},
        "output": {"uri": str(out)},
        "drift": {"fail_if": ["share_change>0.2"]},
    }
    config.write_text(yaml.safe_dump(values))

    def night(num_images: int, change: Any = None, *more: str) -> int:
        ids = list(range(num_images))
        pq.write_table(pa.table({"image_id": ids, "image_uri": [f"/{i}.png" for i in ids]}), manifest)
        with rounds_without_ray(lambda wanted: rows(wanted.to_pylist(), change)):
            return main(["--config", str(config), *more])

    assert night(100) == 0
    assert "nothing to compare with" in caplog.text
    assert not (out / "comparison.json").exists()
    assert night(200) == 0
    assert "drift: psi" in capsys.readouterr().out
    found = json.loads((out / "comparison.json").read_text())
    assert (found["before"]["images"], found["after"]["images"]) == (100, 100)
    assert night(200) == 0  # nothing to do, and nothing to compare
    assert night(300, without(1)) == 3
    assert "beyond the limits of drift.fail_if: share_change>0.2; all results were kept" in caplog.text
    assert json.loads((out / "comparison.json").read_text())["classes"][0]["name"] == "dog"
    assert night(400, None, "--set", "drift.fail_if=['psy>1']") == 2
    files = sorted((out / "data").iterdir())
    assert night(400, None, "--set", f"drift.against={tmp_path / 'gone'}") == 2
    assert sorted((out / "data").iterdir()) == files  # told before anything was done
