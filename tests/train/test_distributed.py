"""Two processes against one: gradients, statistics of the norms, figures, and a whole training."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from pipeline.model.cascade_mask_rcnn.losses.detector import DetectorLoss
from pipeline.model.files.checkpoints import Checkpoint
from pipeline.model.predictor import load_model
from pipeline.storage.uris import Uri
from pipeline.train.distributed import (
    SyncedBatchNorm2d,
    from_first,
    gather_to_first,
    mean_over_workers,
    num_workers,
    parallel,
    synchronise,
)
from pipeline.train.feed import collate
from pipeline.train.loop.checkpoint_folder import CheckpointFolder
from pipeline.train.loop.loop import train
from pipeline.train.loop.settings import LoopConfig, OptimizerConfig, ScheduleConfig
from pipeline.train.loop.telemetry import Step
from pipeline.train.loop.validate import validate
from tests.train.loop_cases import CPU, VALIDATION, Scenes, scene, tiny_start

SETTINGS = LoopConfig(
    optimizer=OptimizerConfig(lr=1e-3), schedule=ScheduleConfig(epochs=1, warmup_iterations=0, steps=())
)


@dataclass(frozen=True)
class Shared(Scenes):
    """Two images a step: all for one worker, or one for each of two."""

    def batches(self, epoch: int, start: int) -> Any:
        for batch in super().batches(epoch, start):
            each = len(batch.image_ids) // num_workers()
            first = (dist.get_rank() if dist.is_initialized() else 0) * each
            yield collate([scene(int(i)) for i in batch.image_ids[first : first + each]], CPU)


def measured(folder: str) -> dict[str, Any]:
    """What one worker, or the only one, sees."""
    torch.set_num_threads(1)
    detector = tiny_start(drop_path_rate=0.0).detector.train()
    model = parallel(DetectorLoss(detector), CPU)
    batch = next(Shared().batches(0, 0))
    losses = model(batch, torch.Generator().manual_seed(0))
    torch.stack(list(losses.values())).sum().backward()
    steps: list[Step] = []
    store = CheckpointFolder(Uri(folder))
    train(tiny_start(drop_path_rate=0.0), Shared(), VALIDATION, store, SETTINGS, CPU, on_step=steps.append)
    start = tiny_start()
    checkpoint = Checkpoint(start.detector.state_dict(), start.detector.variant, start.categories, start.settings)
    settings = replace(start.settings, score_threshold=0.0)
    return {
        "losses": mean_over_workers({name: float(value.detach()) for name, value in losses.items()}, CPU),
        "gradients": {name: parameter.grad for name, parameter in detector.named_parameters()},
        "buffers": dict(detector.named_buffers()),
        "steps": [mean_over_workers(step.losses, CPU) for step in steps],
        "figures": validate(load_model(checkpoint, "cpu", settings=settings), VALIDATION, 2),
        "gathered": gather_to_first(batch.image_ids),
        "from_first": from_first(batch.image_ids),
    }


def _worker(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    result = measured(f"{folder}/two")
    norm = synchronise(nn.Sequential(nn.BatchNorm2d(3)), CPU)
    empty = torch.zeros(0 if rank else 5, 3, 2, 2) + torch.arange(5 * (1 - rank))[:, None, None, None]
    result["uneven"] = norm(empty)
    torch.save(result, f"{folder}/worker-{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Of one process, then of the two."""
    folder = tmp_path_factory.mktemp("workers")
    threads = torch.get_num_threads()
    # From a process that has imported all this once, and has used no threads: two of their own would import it twice.
    mp.get_context("forkserver").set_forkserver_preload([__name__])
    workers = mp.start_processes(_worker, args=(str(folder),), nprocs=2, join=False, start_method="forkserver")
    one = measured(str(folder / "one"))
    torch.set_num_threads(threads)
    while not workers.join():
        pass
    return [one, *(torch.load(folder / f"worker-{rank}.pt", weights_only=True) for rank in range(2))]


def test_gradients_are_those_of_one_worker_with_twice_the_batch(results: list[dict[str, Any]]) -> None:
    one, *two = results
    assert one["losses"] == pytest.approx(two[0]["losses"], rel=1e-4)
    largest = max(float(gradient.abs().max()) for gradient in one["gradients"].values())
    assert largest > 0.1
    for name, gradient in one["gradients"].items():
        for other in two:
            torch.testing.assert_close(other["gradients"][name], gradient, rtol=1e-3, atol=1e-5 * largest, msg=name)


def test_statistics_of_the_norms(results: list[dict[str, Any]]) -> None:
    one, *two = results
    assert any("running_mean" in name for name in one["buffers"])
    for name, buffer in one["buffers"].items():
        for other in two:
            torch.testing.assert_close(other["buffers"][name], buffer, rtol=1e-4, atol=1e-6, msg=name)


def test_a_worker_without_rois_takes_part(results: list[dict[str, Any]]) -> None:
    expected = nn.BatchNorm2d(3)(torch.zeros(5, 3, 2, 2) + torch.arange(5)[:, None, None, None])
    torch.testing.assert_close(results[1]["uneven"], expected)
    assert results[2]["uneven"].shape == (0, 3, 2, 2)


def test_the_losses_of_a_training_are_the_same(results: list[dict[str, Any]]) -> None:
    """AdamW's first steps have the size of the learning rate whatever the gradient's: rounding is felt soon."""
    one, two, _ = results
    assert len(one["steps"]) == len(two["steps"]) == 4
    for mine, theirs in zip(one["steps"][:2], two["steps"][:2], strict=True):
        assert mine == pytest.approx(theirs, rel=0.02, abs=0.002)


def test_one_set_of_files_and_figures(results: list[dict[str, Any]]) -> None:
    one, *two = results
    assert one["figures"]["bbox_AR@100"] > 0
    for other in two:
        assert other["figures"] == one["figures"]


def test_what_workers_tell_each_other(results: list[dict[str, Any]]) -> None:
    one, first, second = results
    assert one["gathered"] == [(0, 1)]
    assert first["gathered"] == [(0,), (1,)]
    assert second["gathered"] is None
    assert first["from_first"] == second["from_first"] == (0,)


def test_one_worker_keeps_its_norms() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3))
    assert parallel(model, CPU) is model


def test_synchronised_norms_keep_names_and_weights() -> None:
    detector = tiny_start().detector
    before = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    synchronise(detector, CPU)
    assert any(isinstance(module, SyncedBatchNorm2d) for module in detector.modules())
    after = detector.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
