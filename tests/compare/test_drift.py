"""A nightly run that compares what it made with what was there. No Ray."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from jobs import show
from jobs.annotate import main
from pipeline.annotate.summary import page
from pipeline.annotate.summary.sample import Sample
from pipeline.compare import report
from pipeline.lake.base import TableFailed
from testing.rounds_without_ray import rounds_without_ray
from testing.small_model import save_tiny
from tests.compare.test_run import NAMES, Change, rows, without, written


class Nights:
    """One output, and a manifest that grows."""

    def __init__(self, folder: Path) -> None:
        self.out, self.manifest, self.config = folder / "out", folder / "manifest.parquet", folder / "nightly.yaml"
        self.model = folder / "tiny.safetensors"
        save_tiny(self.model, enumerate(NAMES, 1))

    def settings(self, drift: dict[str, Any], **output: Any) -> None:
        values = {
            "manifest": {"uri": str(self.manifest)},
            "model": {"checkpoint": str(self.model)},
            "output": {"uri": str(self.out), **output},
            "drift": drift,
        }
        self.config.write_text(yaml.safe_dump(values))

    def night(self, num_images: int, change: Change | None = None, *more: str) -> int:
        """The exit code."""
        ids = list(range(num_images))
        pq.write_table(pa.table({"image_id": ids, "image_uri": [f"/{i}.png" for i in ids]}), self.manifest)
        with rounds_without_ray(lambda wanted: rows(wanted.to_pylist(), change)):
            return main(["--config", str(self.config), *more])

    def compared(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.out / "comparison.json").read_text())
        return found


@pytest.fixture
def nights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> Nights:
    caplog.set_level("INFO")
    monkeypatch.setattr(page, "draw_sample", lambda *_: Sample())
    return Nights(tmp_path)


def test_nights(nights: Nights, tmp_path: Path, caplog: Any, capsys: Any) -> None:
    nights.settings({"fail_if": ["share_change>0.2"]})
    out, night = nights.out, nights.night

    def shown() -> str:
        capsys.readouterr()
        assert show.main([str(out)]) == 0
        return " ".join(capsys.readouterr().out.split())

    assert night(100) == 0
    assert "nothing to compare with" in caplog.text
    assert not (out / "comparison.json").exists()
    assert "what changed" not in shown()
    assert night(200) == 0
    assert "drift: psi" in capsys.readouterr().out
    found = nights.compared()
    assert (found["before"]["images"], found["after"]["images"]) == (100, 100)
    assert found["limits"] == [{"limit": "share_change>0.2", "is_broken": False}]
    run_id = json.loads((out / "run.json").read_text())["run_id"]
    assert f"drift run {run_id}: within 1 limit what changed: {out}/comparison.html" in shown()
    assert night(200) == 0  # nothing to do, and nothing to compare
    assert night(300, without(1)) == 3
    assert "beyond the limits of drift.fail_if: share_change>0.2; all results were kept" in caplog.text
    found = nights.compared()
    assert found["classes"][0]["name"] == "dog"
    assert found["limits"] == [{"limit": "share_change>0.2", "is_broken": True}]
    assert ": beyond 1 of 1 limit: share_change>0.2 what changed" in shown()
    assert "Beyond the limit <code>share_change&gt;0.2</code>" in (out / "comparison.html").read_text()
    assert night(300) == 0  # as docs/operating.md says: what was found is told once
    assert nights.compared() == found
    assert night(400, None, "--set", "drift.fail_if=['psy>1']") == 2
    assert "nightly.yaml, drift.fail_if: 'psy>1' is no limit like 'psi>0.2'" in caplog.text
    files = sorted((out / "data").iterdir())
    assert night(400, None, "--set", f"drift.against={tmp_path / 'gone'}") == 2
    assert sorted((out / "data").iterdir()) == files  # told before anything was done


def test_a_night_of_few_images_is_not_judged(nights: Nights, caplog: Any) -> None:
    """What three images have differs from what a hundred have, by chance: no call at night for that."""
    limits = ["psi>0.5", "js>0.3", "share_change>0.2", "count_change<-0.5", "failed_change>0.01"]
    nights.settings({"fail_if": limits})
    assert nights.night(300) == 0
    assert nights.night(303) == 0
    (said,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert said.startswith("drift: not judged: psi of 3 classes with fewer than 100 objects (")
    assert said.endswith(
        "psi of objects an image and of picture sizes, js of objects an image and of picture sizes, share_change: "
        "a side has fewer than 100 annotated images"
    )
    found = nights.compared()
    unknown = dict.fromkeys(("psi", "js", "share_change", "count_change", "agreement"))
    assert found["figures"] == {**unknown, "failed_change": 0}
    assert found["few_images"]
    assert set(found["not_judged"]["psi"]) == set(NAMES)
    assert nights.night(403) == 0
    assert not nights.compared()["few_images"]


def test_ids_of_another_type_are_told_before_the_night(nights: Nights, tmp_path: Path, caplog: Any) -> None:
    other = written(tmp_path / "other", rows(["a", "b"]))
    nights.settings({"against": str(other)})
    for more in (["--dry-run"], []):
        assert nights.night(10, None, *more) == 2
        assert "of two types" in caplog.text
        assert not (nights.out / "data").exists()
        caplog.clear()


def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def write(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(report, "write", write)


def catalog_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    def commit(*_: Any) -> None:
        raise TableFailed("no answer")

    monkeypatch.setattr("pipeline.lake.delta.DeltaOutput.commit", commit)


@pytest.mark.parametrize("break_it", [full_disk, catalog_out_of_reach])
def test_a_night_that_ended_before_it_was_compared_is_compared_by_the_next_start(
    nights: Nights, break_it: Callable[[pytest.MonkeyPatch], None], caplog: Any
) -> None:
    """Its books are closed, and whoever starts it again on code 1 would never hear of what it found."""
    nights.settings({"fail_if": ["share_change>0.2"]}, table={"kind": "delta"})
    assert nights.night(100) == 0
    assert nights.night(100) == 0  # of one run alone there is nothing to compare
    with pytest.MonkeyPatch.context() as broken:
        break_it(broken)
        assert nights.night(200, without(1)) == 1
    assert not (nights.out / "comparison.json").exists()
    assert nights.night(200) == 3
    assert "is not compared yet" in caplog.text
    assert nights.compared()["after"]["images"] == 100
    assert nights.night(200) == 0
