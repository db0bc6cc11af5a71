"""The Swin backbone (Liu et al. 2021, arXiv 2103.14030) as the published detectors use it.

Blocks, attention and patch merging are timm's. Two things differ from timm's classifier and are exact
copies of what the detectors were trained with: a block pads its map to whole windows *before* the cyclic
shift (timm shifts first, which moves every window of a map that needs padding), and each stage's output
goes through a LayerNorm of its own on its way to the neck, while the next stage gets it un-normalised.

B images, H W map size, C channels, L tokens of one window.
"""

from __future__ import annotations

from typing import cast

import torch
from timm.models.swin_transformer import (
    PatchMerging,
    SwinTransformerBlock,
    window_partition,
    window_reverse,
)
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.model.cascade_mask_rcnn.variants import CascadeVariant

PATCH_SIZE = 4


class PadThenShiftBlock(SwinTransformerBlock):
    """timm's block with the official order: zero-pad to whole windows, shift, attend, shift back, crop.

    Padded tokens are not masked out; they are zero after ``norm1`` and real tokens attend to them.
    """

    def __init__(self, dim: int, num_heads: int, window_size: int, shifted: bool, drop_path: float) -> None:
        # Any input size is served, so the mask is made per call (see SwinStage) and never stored here.
        super().__init__(
            dim=dim,
            input_resolution=(window_size, window_size),
            num_heads=num_heads,
            window_size=window_size,
            shift_size=window_size // 2 if shifted else 0,
            always_partition=True,
            dynamic_mask=True,
            drop_path=drop_path,
        )

    def forward(self, x: Tensor, shift_mask: Tensor | None = None) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C); ``shift_mask`` is used by shifted blocks only."""
        x = x + self.drop_path1(self._attend(self.norm1(x), shift_mask))
        return x + self.drop_path2(self.mlp(self.norm2(x)))

    def _attend(self, x: Tensor, shift_mask: Tensor | None) -> Tensor:
        _, H, W, C = x.shape
        side, shift = self.window_size[0], self.shift_size[0]
        x = F.pad(x, (0, 0, 0, -W % side, 0, -H % side))
        padded_h, padded_w = x.shape[1:3]
        if shift:
            x = torch.roll(x, shifts=(-shift, -shift), dims=(1, 2))
        windows = window_partition(x, self.window_size).view(-1, side * side, C)
        windows = self.attn(windows, mask=shift_mask if shift else None)
        x = window_reverse(windows.view(-1, side, side, C), self.window_size, padded_h, padded_w)
        if shift:
            x = torch.roll(x, shifts=(shift, shift), dims=(1, 2))
        return x[:, :H, :W]


class SwinStage(nn.Module):
    """Patch merging (but in the first stage), then blocks that are plain and shifted by turns."""

    def __init__(self, dim: int, depth: int, num_heads: int, window_size: int, merge: bool, drop_path: list[float]):
        super().__init__()
        self.downsample = PatchMerging(dim // 2, dim) if merge else nn.Identity()
        self.blocks = nn.ModuleList(
            PadThenShiftBlock(dim, num_heads, window_size, shifted=i % 2 == 1, drop_path=drop_path[i])
            for i in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C / 2) -> (B, ceil(H / 2), ceil(W / 2), C), or (B, H, W, C) alike without merging."""
        x = self.downsample(x)
        mask = self._shift_mask(x)
        for block in self.blocks:
            x = block(x, mask)
        return x

    def _shift_mask(self, x: Tensor) -> Tensor | None:
        """One mask for all shifted blocks of the stage: 0 within a region, -100 across. (windows, L, L)."""
        blocks = cast(list[PadThenShiftBlock], list(self.blocks))
        shifted = next((b for b in blocks if any(b.shift_size)), None)
        if shifted is None:
            return None
        side = shifted.window_size[0]
        H, W = x.shape[1:3]
        padded = x.new_empty((1, int(H + -H % side), int(W + -W % side), 1))
        return shifted.get_attn_mask(padded)


class SwinBackbone(nn.Module):
    """Patch embedding, four stages, one LayerNorm on each stage's way out."""

    def __init__(self, variant: CascadeVariant, drop_path_rate: float = 0.0) -> None:
        super().__init__()
        dims = [variant.embed_dim * 2**i for i in range(4)]
        total, starts = sum(variant.depths), [sum(variant.depths[:i]) for i in range(4)]
        rates = [drop_path_rate * i / max(1, total - 1) for i in range(total)]
        self.patch_embed = PatchEmbedding(dims[0])
        self.stages = nn.ModuleList(
            SwinStage(dim, depth, heads, variant.window_size, dim > dims[0], rates[start : start + depth])
            for dim, depth, heads, start in zip(dims, variant.depths, variant.num_heads, starts, strict=True)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for dim in dims)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Feature maps at strides 4, 8, 16, 32.

        Args:
            images: float ``(B, 3, H, W)``, normalised.

        Returns:
            Four maps ``(B, embed_dim * 2**i, ceil(H / 2**(i+2)), ceil(W / 2**(i+2)))``, channels last in memory.
        """
        x = self.patch_embed(images)
        maps = []
        for stage, norm in zip(self.stages, self.norms, strict=True):
            x = stage(x)
            maps.append(norm(x).permute(0, 3, 1, 2))
        return maps


class PatchEmbedding(nn.Module):
    """4x4 patches to tokens, with a LayerNorm. Sides that 4 does not divide are zero-padded."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, kernel_size=PATCH_SIZE, stride=PATCH_SIZE)
        self.norm = nn.LayerNorm(dim)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, ceil(H / 4), ceil(W / 4), C)."""
        H, W = images.shape[-2:]
        images = F.pad(images, (0, -W % PATCH_SIZE, 0, -H % PATCH_SIZE))
        return self.norm(self.proj(images.to(self.proj.weight.dtype)).permute(0, 2, 3, 1))
