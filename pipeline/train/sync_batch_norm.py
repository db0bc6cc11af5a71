"""BatchNorm over the RoIs of all workers, as the published detectors were trained, on any device.

``torch.nn.SyncBatchNorm`` runs on accelerators only; here the statistics go through ``all_reduce``, which gloo has
too. Legend: R RoIs of this worker, perhaps none; C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """In training the mean and variance are those of all workers' pixels; names and evaluation are BatchNorm's."""

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
