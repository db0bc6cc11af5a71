from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from pipeline.model.batch import Batch
from pipeline.model.cascade_mask_rcnn.losses.detector import DetectorLoss
from pipeline.model.files.checkpoints import load_checkpoint
from pipeline.model.predictor import Predictor, load_model
from pipeline.storage.uris import Uri
from pipeline.train.loop.checkpoint_folder import CheckpointFolder, Position
from pipeline.train.loop.finite import NonFiniteLoss
from pipeline.train.loop.loop import checkpoint_activations, train
from pipeline.train.loop.settings import LoopConfig, OptimizerConfig, ScheduleConfig
from pipeline.train.loop.telemetry import Step
from pipeline.train.loop.validate import ValidationSet, validate
from pipeline.train.sample.sample import Sample
from tests.train.loop_cases import CPU, SETTINGS, VALIDATION, Scenes, scene, tiny_start

pytestmark = pytest.mark.usefixtures("one_thread")
FAST = LoopConfig(
    seed=5,
    optimizer=OptimizerConfig(lr=1e-3, max_grad_norm=5.0, ema_decay=0.9),
    schedule=ScheduleConfig(epochs=2, warmup_iterations=3, steps=(1,)),
    log_every=2,
)


class Killed(Exception):
    pass


@dataclass
class Run:
    """Trains in a folder; what happened is in ``steps``."""

    folder: Path
    steps: list[Step]

    def train(
        self,
        settings: LoopConfig = FAST,
        kill_after: int | None = None,
        data: Scenes | None = None,
        validation: list[Sample] | None = None,
        save_every: int | None = None,
    ) -> Position:
        def on_step(step: Step) -> None:
            if step.iteration == kill_after:
                raise Killed
            self.steps.append(step)

        store = CheckpointFolder(Uri(str(self.folder)))
        return train(
            tiny_start(), data or Scenes(), validation, store, settings, CPU, save_every=save_every, on_step=on_step
        )


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "run", [])


def test_a_killed_run_goes_on_exactly(run: Run, tmp_path: Path) -> None:
    """In the middle of an epoch, with drop path, sampling, clipping, the average, and a step of the schedule."""
    straight = Run(tmp_path / "straight", [])
    straight.train(save_every=2)
    with pytest.raises(Killed):
        run.train(save_every=2, kill_after=3)
    assert [step.iteration for step in run.steps] == [0, 1, 2]
    del run.steps[2:]  # beyond the last save, so it is done again
    with pytest.raises(Killed):
        run.train(save_every=2, kill_after=6)
    run.train(save_every=2)
    assert run.steps == straight.steps
    ends = [CheckpointFolder(Uri(str(folder))).load_last() for folder in (run.folder, straight.folder)]
    assert ends[0] is not None
    assert ends[1] is not None
    assert ends[0].checkpoint.weights_sha256 == ends[1].checkpoint.weights_sha256
    assert ends[0].state.keys() == ends[1].state.keys()
    assert all(torch.equal(tensor, ends[1].state[name]) for name, tensor in ends[0].state.items())


def test_what_is_left(run: Run) -> None:
    position = run.train(validation=VALIDATION)
    assert {path.name for path in run.folder.iterdir()} == {
        "last.safetensors",
        "best.safetensors",
        "state-00000008.safetensors",
    }
    assert position.iteration == 8
    assert [row["epoch"] for row in position.history] == [1, 2]
    assert position.best == max(row["segm_mAP"] for row in position.history)
    best = load_checkpoint(run.folder / "best.safetensors")
    assert best.settings == SETTINGS
    assert best.source["validation"]["segm_mAP"] == position.best
    assert len(load_model(run.folder / "best.safetensors", "cpu").predict([scene(0).pixels])) == 1


def test_the_average_is_what_is_written(run: Run) -> None:
    run.train()
    saved = CheckpointFolder(Uri(str(run.folder))).load_last()
    assert saved is not None
    name = "rpn.objectness.weight"
    assert not torch.equal(saved.weights[name], saved.checkpoint.weights[name])


def test_a_finished_run_is_left_as_it_is(run: Run) -> None:
    run.train()
    before = (run.folder / "last.safetensors").read_bytes()
    assert run.train().iteration == 8
    assert len(run.steps) == 8
    assert (run.folder / "last.safetensors").read_bytes() == before


def test_the_learning_rate_of_each_step(run: Run) -> None:
    schedule = ScheduleConfig(epochs=2, warmup_iterations=2, warmup_factor=0.5, steps=(1,))
    run.train(FAST.model_copy(update={"schedule": schedule}))
    assert [step.lr for step in run.steps] == pytest.approx([5e-4, 7.5e-4, 1e-3, 1e-3, 1e-4, 1e-4, 1e-4, 1e-4])


def test_lines_for_people(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        run.train(validation=VALIDATION)
    lines = [record.getMessage() for record in caplog.records]
    steps = [line for line in lines if line.startswith("epoch ")]
    assert [line.split(" loss")[0] for line in steps] == [
        "epoch 1 iteration 2/8",
        "epoch 1 iteration 4/8",
        "epoch 2 iteration 6/8",
        "epoch 2 iteration 8/8",
    ]
    assert all(word in steps[0] for word in ("rpn_class", "stage3_mask", "lr", "img/s", "to go"))
    assert [line.split(":")[0] for line in lines if "segm_mAP" in line] == [
        "validation after epoch 1",
        "validation after epoch 2",
    ]


@dataclass(frozen=True)
class Broken(Scenes):
    """NaN pixels in the third batch."""

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        for iteration, batch in enumerate(super().batches(epoch, start), start):
            yield replace(batch, images=batch.images * float("nan")) if iteration == 2 else batch


def test_a_loss_that_is_no_number_stops_with_the_images(run: Run) -> None:
    with pytest.raises(NonFiniteLoss, match="image ids 4, 5"):
        run.train(data=Broken())
    assert len(run.steps) == 2


def test_a_gradient_that_is_no_number_stops_with_the_images(run: Run) -> None:
    class Loss(DetectorLoss):
        def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, torch.Tensor]:
            return {"part": (self.detector.rpn.objectness.bias.sum() * 0).sqrt()}  # the derivative at 0 is infinite

    with pytest.raises(NonFiniteLoss, match=r"gradient is nan in iteration 0, with images 0, 1"):
        train(tiny_start(), Scenes(), None, CheckpointFolder(Uri(str(run.folder))), FAST, CPU, make_loss=Loss)


def test_bf16_trains(run: Run) -> None:
    run.train(FAST.model_copy(update={"precision": "bf16", "schedule": ScheduleConfig(epochs=1)}))
    exact = Run(run.folder.with_name("fp32"), [])
    exact.train(FAST.model_copy(update={"schedule": ScheduleConfig(epochs=1)}))
    assert run.steps[0].total == pytest.approx(exact.steps[0].total, rel=0.05)
    assert run.steps[0].losses != exact.steps[0].losses


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_validation_is_in_the_precision_of_the_config(
    precision: str, dtype: torch.dtype, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As annotate would hold the model, whatever the training computes in."""
    models: list[Predictor] = []

    def noted(model: Predictor, images: ValidationSet, batch_size: int) -> dict[str, float]:
        models.append(model)
        assert not torch.is_autocast_enabled("cpu")
        return validate(model, images, batch_size)

    monkeypatch.setattr("pipeline.train.loop.loop.validate", noted)
    settings = FAST.model_copy(update={"precision": precision, "schedule": ScheduleConfig(epochs=1)})
    run.train(settings, validation=VALIDATION)
    [model] = models
    assert {parameter.dtype for parameter in model.detector.backbone.parameters()} == {dtype}


def test_activation_checkpointing_changes_no_gradient() -> None:
    """Nor the drop path that is drawn: the second forward draws the same."""
    batch = next(Scenes().batches(0, 0))
    gradients = []
    for checkpointed in (False, True):
        detector = tiny_start(drop_path_rate=0.5).detector
        names = list(detector.state_dict())
        if checkpointed:
            checkpoint_activations(detector)
        assert list(detector.state_dict()) == names
        torch.manual_seed(0)
        losses = DetectorLoss(detector.train())(batch, torch.Generator().manual_seed(0))
        torch.stack(list(losses.values())).sum().backward()
        gradients.append({name: parameter.grad for name, parameter in detector.named_parameters()})
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


def test_the_average_can_be_left_out(run: Run) -> None:
    run.train(LoopConfig(schedule=ScheduleConfig(epochs=1)))
    saved = CheckpointFolder(Uri(str(run.folder))).load_last()
    assert saved is not None
    assert not [name for name in saved.state if name.startswith("weights.")]
