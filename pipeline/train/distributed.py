"""Several workers on one model, by `torch.distributed`; all of it is a no-op in a process of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.train.sync_batch_norm import synchronise


def num_workers() -> int:
    """Workers of the group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def worker_rank() -> int:
    """This worker's number; 0 speaks and writes."""
    return dist.get_rank() if dist.is_initialized() else 0


def parallel(model: nn.Module, device: torch.device) -> nn.Module:
    """The model as one of several replicas: equal weights, BatchNorm over all of them, averaged gradients.

    Args:
        model: on its device. It is changed (see `sync_batch_norm`), and keeps the names of its weights.
        device: where it is.
    """
    if num_workers() == 1:
        return model
    ids = [device.index or 0] if device.type == "cuda" else None
    return DistributedDataParallel(
        synchronise(model, device).to(device), device_ids=ids, broadcast_buffers=False, gradient_as_bucket_view=True
    )


def mean_over_workers(values: Mapping[str, float], device: torch.device) -> dict[str, float]:
    """The mean of each value; all workers give the same names."""
    if num_workers() == 1:
        return dict(values)
    stacked = torch.tensor(list(values.values()), dtype=torch.float64, device=device)
    dist.all_reduce(stacked)
    return dict(zip(values, (stacked / num_workers()).tolist(), strict=True))


def gather_to_first(value: Any) -> list[Any] | None:
    """What every worker gives, in their order, on worker 0; ``None`` on the others."""
    if num_workers() == 1:
        return [value]
    gathered: list[Any] | None = [None] * num_workers() if worker_rank() == 0 else None
    dist.gather_object(value, gathered)
    return gathered


def from_first(value: Any) -> Any:
    """What worker 0 gives, on all workers."""
    if num_workers() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]
