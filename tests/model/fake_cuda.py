"""A CUDA device as far as its faults go, where there is none: it lives, runs out of memory, and is lost."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import NamedTuple

import pytest
import torch

from pipeline.model import device


class Lost(NamedTuple):
    """A way in which the loss of a device is told."""

    message: str
    error: type[Exception] = RuntimeError

    def __str__(self) -> str:
        return f"{self.error.__name__} {self.message.partition(':')[0]}"


# By PyTorch, by the libraries that it calls, by a compiled kernel; and by a lack of memory that was not the cause.
LOST = [
    Lost("CUDA error: an illegal memory access was encountered"),
    Lost("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    Lost("Triton Error [CUDA]: an illegal memory access was encountered"),
    Lost("CUDA driver error: unspecified launch failure"),
    Lost("CUDA error: unspecified launch failure", torch.AcceleratorError),
    Lost("CUDA out of memory. Tried to allocate 2 GiB", torch.OutOfMemoryError),
]


def _as_cuda(real: Callable[[torch.device, Exception], None], _: torch.device, error: Exception) -> None:
    real(torch.device("cuda"), error)


class FakeCuda:
    """Patched into ``torch.cuda``: predictors compute on the CPU, and their errors are judged as this device's.

    Once it is lost, every call fails, as on a real one, until the process is new.

    Attributes:
        emptied: how often its cached memory was given back.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_lost = False
        self.emptied = 0
        for name, real in (("raise_if_lost", device.raise_if_lost), ("free_memory", device.free_memory)):
            monkeypatch.setattr(f"pipeline.model.predictor.{name}", partial(_as_cuda, real))
        monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: self._call())
        monkeypatch.setattr(torch.cuda, "empty_cache", self._empty_cache)

    def lose(
        self, message: str, culprits: Collection[int], error: type[Exception] = RuntimeError
    ) -> Callable[[Sequence[int]], Exception | None]:
        """For a network that loses the device over some pictures."""

        def fail(numbers: Sequence[int]) -> Exception | None:
            self.is_lost = self.is_lost or not set(culprits).isdisjoint(numbers)
            return error(message) if self.is_lost else None

        return fail

    def restart(self) -> None:
        """In a new process the device is there again."""
        self.is_lost = False

    def _empty_cache(self) -> None:
        self._call()
        self.emptied += 1

    def _call(self) -> None:
        if self.is_lost:
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
