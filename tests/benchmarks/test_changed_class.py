"""A class that looks otherwise, through a model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.checks.changed_class import CHANGES, SIZE, main
from jobs.demo import SEED
from pipeline.synthetic.scenes import render_scene


@pytest.mark.parametrize("change", CHANGES)
def test_only_what_is_near_changes(change: str) -> None:
    scene = render_scene((SEED, 0), SIZE)
    objects = scene.masks[0]
    changed = CHANGES[change](scene.pixels, objects)
    differs = (changed != scene.pixels).any(axis=2)
    assert differs[objects].mean() > 0.9
    rows, columns = np.nonzero(objects)
    near = np.zeros(SIZE, np.bool_)
    near[max(0, rows.min() - 32) : rows.max() + 33, max(0, columns.min() - 32) : columns.max() + 33] = True
    assert not differs[~near].any()


def test_nothing_is_left_of_what_is_taken_out() -> None:
    """On one colour there is nothing to see but noise, also where a whole side of the picture goes."""
    pixels = np.full((*SIZE, 3), 120, np.uint8)
    objects = np.zeros(SIZE, np.bool_)
    objects[40:90, 70:] = True
    pixels[objects] = 250
    changed = CHANGES["taken out"](pixels, objects)
    assert np.abs(changed.astype(int) - 120).max() < 30


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_the_class_that_changed_comes_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--out", str(tmp_path), "--scenes", "60", "--classes", "star"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| star")]
    assert [row.split(" | ")[1:3] for row in rows] == [[change, "star"] for change in CHANGES]
