"""Feature pyramid (Lin et al. 2017, arXiv 1612.03144), with mmdet's extra level for the RPN."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class FeaturePyramid(nn.Module):
    """1x1 laterals, nearest top-down sums, 3x3 outputs; no norms and no activations."""

    def __init__(self, in_channels: list[int], out_channels: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(c, out_channels, 1) for c in in_channels)
        self.outputs = nn.ModuleList(nn.Conv2d(out_channels, out_channels, 3, padding=1) for _ in in_channels)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Backbone maps at strides 4..32 to P2..P6, all with ``out_channels`` channels.

        A coarse map is brought to the *size* of the finer one, which is not always twice its own. P6 is
        every second pixel of P5; only the RPN uses it.
        """
        levels = [lateral(x) for lateral, x in zip(self.laterals, maps, strict=True)]
        for i in range(len(levels) - 1, 0, -1):
            levels[i - 1] = levels[i - 1] + F.interpolate(levels[i], size=levels[i - 1].shape[-2:], mode="nearest")
        outputs = [conv(x) for conv, x in zip(self.outputs, levels, strict=True)]
        return [*outputs, F.max_pool2d(outputs[-1], kernel_size=1, stride=2)]
