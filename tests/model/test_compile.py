"""A detector that is compiled finds the same, is compiled for few cases, and by one process for all."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from dataclasses import fields
from itertools import product
from pathlib import Path

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters

from pipeline.errors import UserError
from pipeline.model.cascade_mask_rcnn import rpn, swin
from pipeline.model.detections import BatchDetections
from pipeline.model.predictor import load_model
from pipeline.model.speed import SpeedOptions, compile_forward, keep_compiled
from tests.model.compiled_process import SETTINGS, SHAPES, tiny_checkpoint

BATCHES = (2, 3, 4)


@torch.inference_mode()
def test_forward_compiles_to_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """For several images, whatever their shape and number, without a break, and with the results of the plain one.

    A single image is one case more, of all shapes as well: see the slow test.
    """
    detector = load_model(tiny_checkpoint(), "cpu", speed=SpeedOptions.none()).detector
    detector.compact = False
    plain, plans = detector.forward, {shape: detector.plan(shape) for shape in SHAPES}
    # A cache is none to the compiler, which would look into the function and compute it in each call.
    monkeypatch.setattr(rpn, "anchors", None)
    monkeypatch.setattr(swin, "stage_windows", None)
    torch._dynamo.reset()
    counters.clear()
    counting = CompileCounter()
    compile_forward(detector, counting)
    for (height, width), count in product(SHAPES, BATCHES):
        images = torch.randn(count, 3, height, width)
        sizes = torch.tensor([[height - 3.0, width - 5.0 * i] for i in range(count)])
        inputs = (images, sizes, torch.full((count, 2), 0.7), plans[height, width], SETTINGS)
        ours, reference = detector(*inputs), plain(*inputs)
        assert reference.counts.sum() > 0
        for field in fields(BatchDetections):
            assert torch.equal(getattr(ours, field.name), getattr(reference, field.name))
    assert (counting.frame_count, dict(counters["graph_break"])) == (1, {})


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="torch.compile needs a C++ compiler")
def test_compiled_model_detects_the_same_and_is_compiled_once(tmp_path: Path) -> None:
    """Two shapes, for which it is compiled once; and a second process, which finds what the first one compiled."""
    for hits, misses in ((0, 1), (1, 0)):
        command = [sys.executable, "-m", "tests.model.compiled_process", str(tmp_path / "compiled")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
        assert done.returncode == 0, done.stderr
        said = json.loads(done.stdout.splitlines()[-1])
        for box_px, score in said["differences"]:
            assert box_px < 0.01
            assert score < 1e-3
        cache = said["counters"]["aot_autograd"]
        assert (cache.get("autograd_cache_hit", 0), cache.get("autograd_cache_miss", 0)) == (hits, misses)


# --- what is compiled is kept ---


def test_cache_is_made_for_this_user_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "elsewhere")
    monkeypatch.setenv("TRITON_CACHE_DIR", "elsewhere")
    folder = tmp_path / "shared" / "compiled"
    keep_compiled(str(folder))
    keep_compiled(str(folder))
    assert stat.filemode(folder.stat().st_mode) == "drwx------"
    assert (os.environ["TORCHINDUCTOR_CACHE_DIR"], os.environ["TRITON_CACHE_DIR"]) == (str(folder), f"{folder}/triton")


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o710, 0o702, 0o1777], ids=oct)
def test_cache_that_others_may_reach_is_refused(mode: int, tmp_path: Path) -> None:
    tmp_path.chmod(mode)
    with pytest.raises(UserError, match="not this user's alone"):
        keep_compiled(str(tmp_path))


def test_cache_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o700)
    other = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: other)
    with pytest.raises(UserError, match="not this user's alone"):
        keep_compiled(str(tmp_path))


def test_cache_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="Not a directory"):
        keep_compiled(str(tmp_path / "file" / "folder"))
