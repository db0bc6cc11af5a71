from __future__ import annotations

import logging
from pathlib import Path

import fsspec
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.storage.uris import Uri
from pipeline.train.loop import telemetry as module
from pipeline.train.loop.telemetry import Curves, Step, Telemetry
from tests.train.loop_cases import CPU


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    return now


def step(iteration: int, loss: float = 1.0) -> Step:
    return Step(iteration, {"rpn_class": loss, "stage1_box": 2 * loss}, 1e-4, 3.0, 2)


def points(folder: Path | str, name: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, pytest.approx(event.value)) for event in events.Scalars(name)]


def test_a_line_every_few_steps_and_at_the_end_of_an_epoch(
    clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    telemetry = Telemetry(None, 3, num_iterations=10, iterations_per_epoch=5, device=CPU)
    with caplog.at_level(logging.INFO):
        for iteration in range(5):
            clock[0] += 0.5
            telemetry.take(step(iteration, loss=iteration))
    first, second = caplog.messages
    # Steps 0 to 2: mean loss 1 + 2; 6 images in 1.5 s; 7 steps of 0.5 s to go.
    assert first == (
        "epoch 1 iteration 3/10 loss 3.0000 (rpn_class 1.0000 stage1_box 2.0000) gradient 3 lr 0.0001 4.00 img/s, "
        "3.5 s to go"
    )
    assert second.startswith("epoch 1 iteration 5/10 loss 10.5000 (rpn_class 3.5000")


def test_time_to_save_is_not_training_time(clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    telemetry = Telemetry(None, 1, num_iterations=10, iterations_per_epoch=5, device=CPU)
    clock[0] += 100
    telemetry.saved()
    clock[0] += 1
    with caplog.at_level(logging.INFO):
        telemetry.take(step(0))
    assert "2.00 img/s" in caplog.messages[0]


def test_curves(tmp_path: Path) -> None:
    curves = Curves(Uri(str(tmp_path)), 0)
    telemetry = Telemetry(curves, 2, num_iterations=4, iterations_per_epoch=2, device=CPU)
    for iteration in range(4):
        telemetry.take(step(iteration, loss=iteration))
    telemetry.figures(4, {"segm_mAP": 0.5, "segm_mAP_50": 0.6, "bbox_mAP": 0.7})
    curves.close()
    folder = tmp_path / "tensorboard"
    assert points(folder, "loss/rpn_class") == [(2, 0.5), (4, 2.5)]
    assert points(folder, "loss/total") == [(2, 1.5), (4, 7.5)]
    assert points(folder, "training/lr") == [(2, 1e-4), (4, 1e-4)]
    assert points(folder, "validation/segm_mAP") == [(4, 0.5)]


def test_what_is_done_again_is_drawn_once(tmp_path: Path) -> None:
    killed = Curves(Uri(str(tmp_path)), 0)
    for iteration in range(1, 6):
        killed.scalar("loss/total", float(iteration), iteration)
    killed.close()
    resumed = Curves(Uri(str(tmp_path)), 3)
    resumed.scalar("loss/total", 40.0, 4)
    resumed.close()
    assert points(tmp_path / "tensorboard", "loss/total") == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0)]


def test_on_an_object_store(tmp_path: Path) -> None:
    curves = Curves(Uri("memory://curves/run"), 0)
    curves.scalar("loss/total", 1.0, 1)
    curves.flush()
    curves.scalar("loss/total", 2.0, 2)
    curves.close()
    files = fsspec.filesystem("memory").find("/curves/run/tensorboard")
    assert len(files) == 1
    (tmp_path / Path(files[0]).name).write_bytes(fsspec.filesystem("memory").cat(files[0]))
    assert points(tmp_path, "loss/total") == [(1, 1.0), (2, 2.0)]
