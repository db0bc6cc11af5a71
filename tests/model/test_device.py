"""Whether a device is lost is asked of the device."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pipeline.errors import UserError
from pipeline.model.device import DeviceLost, free_memory, is_out_of_memory, raise_if_lost, true_float32, usable_device
from pipeline.model.files.checkpoints import Checkpoint
from pipeline.model.predictor import load_model
from tests.model.fake_cuda import LOST, FakeCuda, Lost

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    return FakeCuda(monkeypatch)


@pytest.mark.parametrize("kind", LOST, ids=str)
def test_lost(kind: Lost, cuda: FakeCuda) -> None:
    cuda.is_lost, error = True, kind.error(kind.message)
    with pytest.raises(DeviceLost, match="device cuda is lost: ") as raised:
        raise_if_lost(CUDA, error)
    assert raised.value.__cause__ is error
    with pytest.raises(DeviceLost, match="illegal memory access") as raised:
        free_memory(CUDA, error)
    assert raised.value.__cause__ is error


@pytest.mark.parametrize("text", ["CUDA error: invalid argument", "out of memory", "device is lost"])
def test_a_device_that_answers_is_not_lost_whatever_the_message_says(text: str, cuda: FakeCuda) -> None:
    for error in (RuntimeError(text), ValueError(text), torch.OutOfMemoryError(text)):
        raise_if_lost(CUDA, error)
        free_memory(CUDA, error)
    assert cuda.emptied == 3


def test_an_error_of_the_device_itself_is_its_loss(cuda: FakeCuda) -> None:
    with pytest.raises(DeviceLost):
        raise_if_lost(CUDA, torch.AcceleratorError("CUDA error: unspecified launch failure"))


def test_memory_that_is_refused_is_no_loss(cuda: FakeCuda) -> None:
    """Pinned memory, for one, is refused in the words of the device."""
    error = torch.AcceleratorError("CUDA error: out of memory")
    error.error_code = 2  # type: ignore[attr-defined]
    raise_if_lost(CUDA, error)
    assert is_out_of_memory(error)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    for other in (torch.AcceleratorError("CUDA error: out of memory"), RuntimeError("out of memory")):
        assert not is_out_of_memory(other)
    cuda.is_lost = True
    with pytest.raises(DeviceLost):
        raise_if_lost(CUDA, error)


def test_a_device_that_gives_no_memory_back_is_not_lost(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise RuntimeError("captures_underway.empty() INTERNAL ASSERT FAILED")

    monkeypatch.setattr(torch.cuda, "empty_cache", refuse)
    free_memory(CUDA, RuntimeError("CUDA error: invalid argument"))


def test_a_cpu_is_never_lost(cuda: FakeCuda) -> None:
    cuda.is_lost = True
    raise_if_lost(CPU, RuntimeError("CUDA error"))
    free_memory(CPU, RuntimeError("CUDA error"))


def test_a_device_that_is_lost_while_the_model_is_loaded(
    cuda: FakeCuda, small_checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def to(*_: Any, **__: Any) -> Any:
        cuda.is_lost = True
        raise RuntimeError("CUDA driver error: unspecified launch failure")

    monkeypatch.setattr("pipeline.model.cascade_mask_rcnn.detector.CascadeMaskRCNN.to", to)
    with pytest.raises(DeviceLost, match="driver error: unspecified launch failure"):
        load_model(small_checkpoint, "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_usable() -> None:
    assert usable_device("cpu") == CPU
    for name in ("gpu", "cuda", "cuda:1"):
        with pytest.raises(UserError, match=f"device '?{name}'?: "):
            usable_device(name)


def test_tf32_is_forbidden_while_anyone_needs_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads that overlap: what one ends with does not reach into the other."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    one, other = true_float32(CUDA), true_float32(CUDA)
    one.__enter__()
    other.__enter__()
    one.__exit__(None, None, None)
    assert not torch.backends.cudnn.allow_tf32
    other.__exit__(None, None, None)
    assert torch.backends.cudnn.allow_tf32


def test_of_a_cpu_no_flag_is_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    with true_float32(CPU):
        assert torch.backends.cudnn.allow_tf32
