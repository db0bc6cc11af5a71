"""Two workers, played by one process."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch import distributed as dist

from pipeline.model.normalisers import per_worker

CPU = torch.device("cpu")


def test_one_worker() -> None:
    assert per_worker(5, torch.tensor(0), device=CPU).tolist() == [5, 1]


def test_mean_over_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    def add_other(counts: Tensor) -> None:
        counts += torch.tensor([3.0, 0.0, 1.0])

    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_reduce", add_other)
    # Where no worker has any, each divides by half of 1.
    assert per_worker(5, 0, torch.tensor(0), device=CPU).tolist() == [4, 0.5, 0.5]
