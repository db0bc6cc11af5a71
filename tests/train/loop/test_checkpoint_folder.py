from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline.model.cascade_mask_rcnn.network import decays
from pipeline.model.files.checkpoints import Checkpoint, CheckpointError, load_checkpoint, save_checkpoint
from pipeline.storage.lock.lease import LockLost, OutputLock
from pipeline.storage.uris import Uri
from pipeline.storage.whole_file import temporary_name
from pipeline.train.loop import checkpoint_folder as module
from pipeline.train.loop.checkpoint_folder import (
    CheckpointFolder,
    Position,
    load_optimizer_state,
    optimizer_state,
)
from pipeline.train.loop.optimizer import make_optimizer
from pipeline.train.loop.settings import OptimizerConfig
from tests.train.loop_cases import CATEGORIES, SETTINGS, TINY, tiny_start

POSITION = Position(7, best=0.25, history=({"epoch": 1, "segm_mAP": 0.25},))


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return tiny_start().detector


@pytest.fixture(scope="module")
def checkpoint(model: torch.nn.Module) -> Checkpoint:
    return Checkpoint(model.state_dict(), TINY, CATEGORIES, SETTINGS, {"start": "random weights"})


def stepped(model: torch.nn.Module) -> torch.optim.AdamW:
    optimizer = make_optimizer(model, OptimizerConfig(), decays)
    for number, parameter in enumerate(model.parameters()):
        parameter.grad = torch.full_like(parameter, number + 1.0)
    optimizer.step()
    return optimizer


def test_everything_comes_back(checkpoint: Checkpoint, tmp_path: Path) -> None:
    model = tiny_start().detector
    optimizer = stepped(model)
    folder = CheckpointFolder(Uri(str(tmp_path / "run")))
    trained = {name: tensor + 1 for name, tensor in checkpoint.weights.items()}
    folder.save_last(checkpoint, optimizer_state(optimizer, model), POSITION, trained, {"lr": 1})
    saved = folder.load_last()
    assert saved is not None
    assert saved.position == POSITION
    assert saved.settings == {"lr": 1}
    assert saved.checkpoint.weights_sha256 == checkpoint.weights_sha256
    assert saved.checkpoint.source == checkpoint.source
    assert all(torch.equal(saved.weights[name], tensor) for name, tensor in trained.items())
    other = tiny_start().detector
    restored = make_optimizer(other, OptimizerConfig(), decays)
    load_optimizer_state(restored, other, saved.state)
    mine, theirs = optimizer_state(optimizer, model), optimizer_state(restored, other)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())


def test_last_is_a_model_for_annotate(checkpoint: Checkpoint, tmp_path: Path) -> None:
    CheckpointFolder(Uri(str(tmp_path))).save_last(checkpoint, {}, POSITION)
    found = load_checkpoint(tmp_path / "last.safetensors")
    assert (found.weights_sha256, found.categories, found.settings) == (
        checkpoint.weights_sha256,
        CATEGORIES,
        SETTINGS,
    )
    assert found.source["training"]["position"]["iteration"] == 7


def test_without_an_average_the_trained_weights_are_the_models(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = CheckpointFolder(Uri(str(tmp_path)))
    folder.save_last(checkpoint, {}, POSITION)
    saved = folder.load_last()
    assert saved is not None
    assert saved.weights is saved.checkpoint.weights


def test_older_states_go(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = CheckpointFolder(Uri(str(tmp_path)))
    for iteration in (1, 2, 3):
        folder.save_last(checkpoint, {}, Position(iteration))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.safetensors", "state-00000003.safetensors"]


def test_what_a_killed_training_left_goes(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("state-00000001.safetensors", "last.safetensors", "best.safetensors"):
        Path(temporary_name(str(folder / name))).write_bytes(b"half of it")
    (folder / ".mine.tmp").touch()
    CheckpointFolder(Uri(str(folder))).save_last(checkpoint, {}, POSITION)
    assert sorted(path.name for path in folder.iterdir()) == [
        ".mine.tmp",
        "last.safetensors",
        "state-00000007.safetensors",
    ]


@pytest.mark.parametrize("dies_at", ["last.safetensors", "state-00000002.safetensors"])
def test_killed_while_saving(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies_at: str
) -> None:
    """Whatever was written of the second save, the first one is whole."""
    folder = CheckpointFolder(Uri(str(tmp_path)))
    folder.save_last(checkpoint, {"a/b": torch.ones(1)}, Position(1))
    sent = module._sent

    def dies(objects, uri, name):
        if name == dies_at:
            raise KeyboardInterrupt
        return sent(objects, uri, name)

    monkeypatch.setattr(module, "_sent", dies)
    with pytest.raises(KeyboardInterrupt):
        folder.save_last(checkpoint, {"a/b": torch.zeros(1)}, Position(2))
    saved = folder.load_last()
    assert saved is not None
    assert saved.position.iteration == 1
    assert saved.state["optimizer.a/b"].tolist() == [1.0]


def test_nothing_was_saved(tmp_path: Path) -> None:
    assert CheckpointFolder(Uri(str(tmp_path / "nowhere"))).load_last() is None
    assert not (tmp_path / "nowhere").exists()


def test_a_model_of_someone_else(checkpoint: Checkpoint, tmp_path: Path) -> None:
    save_checkpoint(checkpoint, tmp_path / "last.safetensors")
    with pytest.raises(CheckpointError, match="without a record of training"):
        CheckpointFolder(Uri(str(tmp_path))).load_last()


def cut(state: Path) -> None:
    state.write_bytes(state.read_bytes()[:-3])


def flip(state: Path) -> None:
    content = bytearray(state.read_bytes())
    content[-1] ^= 1
    state.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"), [(Path.unlink, "is not there"), (cut, "truncated"), (flip, "not what was written")]
)
def test_a_state_that_is_damaged_or_gone(
    checkpoint: Checkpoint, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    folder = CheckpointFolder(Uri(str(tmp_path)))
    folder.save_last(checkpoint, {"a/b": torch.ones(3)}, Position(1))
    damage(tmp_path / "state-00000001.safetensors")
    with pytest.raises(CheckpointError, match=message):
        folder.load_last()


def test_the_state_of_another_model(tmp_path: Path, checkpoint: Checkpoint) -> None:
    model = torch.nn.Linear(2, 2)
    state = {"optimizer." + name: tensor for name, tensor in optimizer_state(stepped(model), model).items()}
    other = torch.nn.Sequential(torch.nn.Linear(2, 2))
    with pytest.raises(CheckpointError, match="not that of this model"):
        load_optimizer_state(make_optimizer(other, OptimizerConfig(), decays), other, state)


def test_on_an_object_store(checkpoint: Checkpoint, model: torch.nn.Module) -> None:
    folder = CheckpointFolder(Uri("memory://bucket/run"))
    assert folder.load_last() is None
    folder.save_best(checkpoint)
    for iteration in (1, 2):
        folder.save_last(checkpoint, {"a/b": torch.full((1,), 5.0)}, Position(iteration))
    saved = folder.load_last()
    assert saved is not None
    assert saved.position.iteration == 2
    assert saved.state["optimizer.a/b"].tolist() == [5.0]
    names = [entry.name for entry in folder._objects.list("").files]
    assert names == ["best.safetensors", "last.safetensors", "state-00000002.safetensors"]


def test_a_run_that_lost_its_lock_leaves_the_next_ones_files(checkpoint: Checkpoint, tmp_path: Path) -> None:
    uri = Uri(str(tmp_path))
    first = OutputLock(uri, "first", lease_s=60.0)
    first.acquire()
    stalled = CheckpointFolder(uri, first.fence())
    stalled.save_last(checkpoint, {"a/b": torch.ones(1)}, Position(3))
    first.release()  # for the others it is the same as a lease that is over
    with OutputLock(uri, "second") as second:
        winner = CheckpointFolder(uri, second.fence())
        winner.save_last(checkpoint, {"a/b": torch.zeros(1)}, Position(5))
        winner.save_best(checkpoint)
        before = {path: path.read_bytes() for path in tmp_path.glob("*.safetensors")}
        with pytest.raises(LockLost):
            stalled.save_last(checkpoint, {"a/b": torch.ones(1)}, Position(4))
        with pytest.raises(LockLost):
            stalled.save_best(checkpoint)
        assert {path: path.read_bytes() for path in tmp_path.glob("*.safetensors")} == before
