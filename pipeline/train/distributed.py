"""Several workers on one model, by `torch.distributed`; all of it is a no-op in a process of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.parallel import DistributedDataParallel


def num_workers() -> int:
    """Workers of the group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def worker_rank() -> int:
    """This worker's number; 0 speaks and writes."""
    return dist.get_rank() if dist.is_initialized() else 0


def parallel(model: nn.Module, device: torch.device) -> nn.Module:
    """The model as one of several replicas: equal weights, BatchNorm over all of them, averaged gradients.

    Args:
        model: on its device. It is changed (see `synchronise`), and keeps the names of its weights.
        device: where the model is.
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


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm over the RoIs of all workers, as the published detectors were trained, on any device.

    In training the mean and variance are those of all workers' pixels; names and evaluation are BatchNorm's.
    ``torch.nn.SyncBatchNorm`` runs on accelerators only; here the statistics go through ``all_reduce``, which gloo has
    too. Legend: R RoIs of this worker, perhaps none; C channels.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(R, C, H, W) -> the same shape. Every worker must call it, those without RoIs too."""
        if not self.training:
            return super().forward(x)
        pixels = x.float()
        count = all_reduce(pixels.new_tensor([x.numel() / x.shape[1]])).clamp(min=1)
        mean = all_reduce(pixels.sum((0, 2, 3))) / count
        centred = pixels - mean[:, None, None]
        variance = all_reduce(centred.square().sum((0, 2, 3))) / count
        self._track(mean.detach(), variance.detach() * count / (count - 1).clamp(min=1))
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)


def synchronise(model: nn.Module, device: torch.device) -> nn.Module:
    """The model with statistics over all workers in place of its BatchNorms; weights and their names stay."""
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.BatchNorm2d:
                setattr(parent, name, _synced(child))
    return model


def _synced(norm: nn.BatchNorm2d) -> SyncedBatchNorm2d:
    synced = SyncedBatchNorm2d(norm.num_features, norm.eps, norm.momentum)
    synced.load_state_dict(norm.state_dict())
    synced.train(norm.training)
    return synced
