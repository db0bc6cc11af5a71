"""The Swin backbone (Liu et al. 2021, arXiv 2103.14030) as the published detectors use it.

Two things differ from timm's classifier and are exact copies of what the detectors were trained with: a block pads
its map to whole windows *before* the cyclic shift (timm shifts first, which moves every window of a map that needs
padding), and each stage's output goes through a LayerNorm of its own on its way to the neck, while the next stage
gets it un-normalised.

Padding, shifting and cutting into windows are one index table, and so are the pixels that a patch merging takes.
`SwinBackbone.windows` makes them all, once for a size of image: the forward decides nothing by a size.

B images, H W map size, T tokens of a map, C channels, N windows of a map, L tokens of one window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from timm.layers import DropPath, Mlp
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.model.cascade_mask_rcnn.variants import CascadeVariant

PATCH_SIZE = 4
# Added to the attention between tokens that came round the edge and tokens that did not.
_STRANGERS = -100.0
# Whom a shifted window has from round an edge: nobody, tokens of the right edge, of the bottom edge, of both.
_KINDS = 4
# CUDA's memory-efficient attention copies a bias unless its rows begin at multiples of so many numbers.
_BIAS_ALIGNMENT = 8


@dataclass(frozen=True)
class Partition:
    """A map of tokens cut into windows.

    Attributes:
        tokens: int64 ``(N * L,)``, of each place in the windows its token; T where there is padding.
        places: int64 ``(T,)``, of each token its place.
    """

    tokens: Tensor
    places: Tensor


@dataclass(frozen=True)
class StageWindows:
    """The index tables of one stage, for one size of map.

    Attributes:
        merged: int64 ``(T * 4,)``, the four tokens of the map before that become each token; one past the last where
            there is padding. ``None`` in the first stage.
        plain: of the first block and every other from there.
        shifted: of the blocks between, whose windows lie half a window further.
        kinds: int64 ``(N,)``, of each shifted window the kind of its bias.
    """

    merged: Tensor | None
    plain: Partition
    shifted: Partition
    kinds: Tensor


class TakeTokens(nn.Module):
    """Tokens by an index table, zeros where it points one past the last."""

    zeros: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("zeros", torch.zeros(1, 1, dim), persistent=False)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """(B, T, C), int64 (n,) -> (B, n, C)."""
        # Takes a CPU 0.3 to 0.9 of the time of zeros and index_copy, and nobody asks whether there is padding.
        return torch.cat([x, self.zeros.to(x.dtype).expand(len(x), -1, -1)], dim=1).index_select(1, tokens)


class WindowAttention(nn.Module):
    """Multi-head attention within each window, with a learned bias for each offset of one token to another.

    Attributes:
        fused_attn: by PyTorch's fused kernels; else by products and a softmax.
    """

    offsets: Tensor
    shift_masks: Tensor | None
    frozen_bias: Tensor | None

    def __init__(self, dim: int, num_heads: int, window_size: int, shifted: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.window_tokens = window_size**2
        self.fused_attn = False
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window_size - 1) ** 2, num_heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer("offsets", _offsets(window_size), persistent=False)
        masks = _shift_masks(window_size) if shifted else None
        self.register_buffer("shift_masks", masks, persistent=False)
        self.register_buffer("frozen_bias", None, persistent=False)

    def forward(self, x: Tensor, kinds: Tensor) -> Tensor:
        """(B, N * L, C) -> (B, N * L, C); ``kinds`` is int64 ``(B * N,)``, used where windows are shifted."""
        C = x.shape[-1]
        qkv = self.qkv(x).view(-1, self.window_tokens, 3, self.num_heads, C // self.num_heads)
        q, k, v = qkv.transpose(1, 3).unbind(2)
        bias = self._bias(kinds)
        if self.fused_attn:
            heads = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        else:
            logits = (q * (C // self.num_heads) ** -0.5) @ k.transpose(-2, -1) + bias
            heads = logits.softmax(dim=-1) @ v
        return self.proj(heads.transpose(1, 2).reshape(x.shape))

    def freeze_bias(self, dtype: torch.dtype) -> None:
        """Make the biases now, in this dtype; the table they come from is no longer read."""
        with torch.no_grad():
            bias = self._computed_bias(torch.arange(_KINDS, device=self.offsets.device)).to(dtype)
        # Flat rows, which stay as they are where 4-dimensional tensors are brought into another memory format.
        self.frozen_bias = F.pad(bias, (0, -self.window_tokens % _BIAS_ALIGNMENT)).flatten(1)

    def _bias(self, kinds: Tensor) -> Tensor:
        """What is added to the attention: ``(B * N, heads, L, L)``, or ``(1, heads, L, L)`` for all windows."""
        if self.frozen_bias is None:
            return self._computed_bias(kinds)
        rows = self.frozen_bias if self.shift_masks is None else self.frozen_bias.index_select(0, kinds)
        return rows.unflatten(1, (self.num_heads, self.window_tokens, -1))[..., : self.window_tokens]

    def _computed_bias(self, kinds: Tensor) -> Tensor:
        L = self.window_tokens
        bias = self.relative_position_bias_table[self.offsets].view(L, L, -1).permute(2, 0, 1).contiguous()[None]
        # Added here and not once for each kind: the gradient of the table is then a plain sum over all windows.
        return bias if self.shift_masks is None else bias + self.shift_masks.index_select(0, kinds)[:, None]


class PadThenShiftBlock(nn.Module):
    """Attention within windows, then an MLP, each of the normalised tokens and added to them.

    Padded tokens are not masked out; they are zero after ``norm1`` and real tokens attend to them.
    """

    def __init__(self, dim: int, num_heads: int, window_size: int, shifted: bool, drop_path: float) -> None:
        super().__init__()
        self.shifted = shifted
        self.norm1 = nn.LayerNorm(dim)
        self.take = TakeTokens(dim)
        self.attn = WindowAttention(dim, num_heads, window_size, shifted)
        self.drop_path1 = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, 4 * dim)
        self.drop_path2 = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor, windows: StageWindows, kinds: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C); ``kinds`` is that of ``windows`` for all images, int64 ``(B * N,)``."""
        partition = windows.shifted if self.shifted else windows.plain
        attended = self.attn(self.take(self.norm1(x), partition.tokens), kinds)
        x = x + self.drop_path1(attended.index_select(1, partition.places))
        return x + self.drop_path2(self.mlp(self.norm2(x)))


class PatchMerging(nn.Module):
    """Four tokens that touch become one of twice the channels; odd sides are zero-padded."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.take = TakeTokens(dim)
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor, merged: Tensor) -> Tensor:
        """(B, T before, C), int64 (T * 4,) -> (B, T, 2 * C)."""
        return self.reduction(self.norm(self.take(x, merged).unflatten(1, (-1, 4)).flatten(2)))


class SwinStage(nn.Module):
    """Patch merging (but in the first stage), then blocks that are plain and shifted by turns."""

    def __init__(self, dim: int, depth: int, num_heads: int, window_size: int, merge: bool, drop_path: list[float]):
        super().__init__()
        self.downsample = PatchMerging(dim // 2) if merge else None
        self.blocks = nn.ModuleList(
            PadThenShiftBlock(dim, num_heads, window_size, shifted=i % 2 == 1, drop_path=drop_path[i])
            for i in range(depth)
        )

    def forward(self, x: Tensor, windows: StageWindows) -> Tensor:
        """(B, T before, C / 2) -> (B, T, C), or (B, T, C) alike without merging."""
        if self.downsample is not None:
            x = self.downsample(x, windows.merged)
        kinds = windows.kinds.repeat(len(x))
        for block in self.blocks:
            x = block(x, windows, kinds)
        return x


class SwinBackbone(nn.Module):
    """Patch embedding, four stages, one LayerNorm on each stage's way out."""

    def __init__(self, variant: CascadeVariant, drop_path_rate: float = 0.0) -> None:
        super().__init__()
        dims = [variant.embed_dim * 2**i for i in range(4)]
        total, starts = sum(variant.depths), [sum(variant.depths[:i]) for i in range(4)]
        rates = [drop_path_rate * i / max(1, total - 1) for i in range(total)]
        self.window_size = variant.window_size
        self.patch_embed = PatchEmbedding(dims[0])
        self.stages = nn.ModuleList(
            SwinStage(dim, depth, heads, variant.window_size, dim > dims[0], rates[start : start + depth])
            for dim, depth, heads, start in zip(dims, variant.depths, variant.num_heads, starts, strict=True)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for dim in dims)

    def windows(self, shape: tuple[int, int]) -> tuple[StageWindows, ...]:
        """The index tables of the four stages for images of this ``(H, W)``, on the device of the weights.

        Raises:
            ValueError: a side is no multiple of `PATCH_SIZE`.
        """
        if shape[0] % PATCH_SIZE or shape[1] % PATCH_SIZE:
            raise ValueError(f"images of {shape[0]} x {shape[1]}: sides must be multiples of {PATCH_SIZE}")
        device, stages = next(self.parameters()).device, []
        H, W = shape[0] // PATCH_SIZE, shape[1] // PATCH_SIZE
        merged = None
        for _ in self.stages:
            stages.append(stage_windows((H, W), self.window_size, merged, device))
            merged = merged_tokens((H, W), device)
            H, W = _half(H), _half(W)
        return tuple(stages)

    def freeze_biases(self, dtype: torch.dtype) -> None:
        """Have all attention biases made once, in the dtype that tokens have: for inference, on the final weights."""
        for module in self.modules():
            if isinstance(module, WindowAttention):
                module.freeze_bias(dtype)

    def forward(self, images: Tensor, windows: Sequence[StageWindows]) -> list[Tensor]:
        """Feature maps at strides 4, 8, 16, 32.

        Args:
            images: float ``(B, 3, H, W)``, normalised; sides that `PATCH_SIZE` divides.
            windows: those of ``(H, W)``.

        Returns:
            Four maps ``(B, embed_dim * 2**i, ceil(H / 2**(i+2)), ceil(W / 2**(i+2)))``, channels last in memory.
        """
        x = self.patch_embed(images)
        H, W = x.shape[1:3]
        x, maps = x.flatten(1, 2), []
        for stage, tables, norm in zip(self.stages, windows, self.norms, strict=True):
            x = stage(x, tables)
            maps.append(norm(x).unflatten(1, (H, W)).permute(0, 3, 1, 2))
            H, W = _half(H), _half(W)
        return maps


class PatchEmbedding(nn.Module):
    """4x4 patches to tokens, with a LayerNorm."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, kernel_size=PATCH_SIZE, stride=PATCH_SIZE)
        self.norm = nn.LayerNorm(dim)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) of any float dtype -> (B, H / 4, W / 4, C) of the weights' own."""
        return self.norm(self.proj(images.to(self.proj.weight.dtype)).permute(0, 2, 3, 1))


def stage_windows(size: tuple[int, int], window_size: int, merged: Tensor | None, device: torch.device) -> StageWindows:
    """The tables of a stage whose maps have this ``(H, W)``; ``merged`` as in `StageWindows`."""
    down, across = (-(-side // window_size) for side in size)
    window = torch.arange(down * across, device=device)
    return StageWindows(
        merged,
        _partition(size, window_size, 0, device),
        _partition(size, window_size, window_size // 2, device),
        kinds=2 * (window // across == down - 1) + (window % across == across - 1),
    )


def _partition(size: tuple[int, int], window_size: int, shift: int, device: torch.device) -> Partition:
    """Padded to whole windows, then rolled up and left by ``shift``, then cut."""
    down, across = (-(-side // window_size) for side in size)
    rows, columns = _grid(size, device)
    rows, columns = (rows - shift) % (down * window_size), (columns - shift) % (across * window_size)
    window = rows // window_size * across + columns // window_size
    places = (window * window_size + rows % window_size) * window_size + columns % window_size
    return Partition(_tokens(places, down * across * window_size**2), places)


def merged_tokens(size: tuple[int, int], device: torch.device) -> Tensor:
    """Of a map of this ``(H, W)``, the tokens of each 2 x 2 pixels, down before across. int64 ``(T * 4,)``."""
    rows, columns = _grid(size, device)
    cells = rows // 2 * _half(size[1]) + columns // 2
    return _tokens(cells * 4 + columns % 2 * 2 + rows % 2, _half(size[0]) * _half(size[1]) * 4)


def _grid(size: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Row and column of each token. All tables are made flat: what is a view of a grid, a compiler would look into."""
    token = torch.arange(size[0] * size[1], device=device)
    return token // size[1], token % size[1]


def _tokens(places: Tensor, count: int) -> Tensor:
    """Of each of ``count`` places its token, where ``places`` are those of all T tokens; T where there is none."""
    tokens = torch.full((count,), len(places), device=places.device)
    tokens[places] = torch.arange(len(places), device=places.device)
    return tokens


def _half(side: int) -> int:
    return (side + 1) // 2


def _offsets(window_size: int) -> Tensor:
    """Of each pair of tokens of a window, the row of the bias table for their offset. int64 ``(L * L,)``."""
    axis = torch.arange(window_size)
    offsets = axis[:, None] - axis + window_size - 1
    return (offsets[:, None, :, None] * (2 * window_size - 1) + offsets[:, None]).flatten()


def _shift_masks(window_size: int) -> Tensor:
    """For each kind of window 0 between tokens that may see each other, else -100. float32 ``(4, L, L)``."""
    came_round = torch.arange(window_size) >= window_size - window_size // 2
    kinds = torch.arange(_KINDS)[:, None, None]
    regions = (kinds // 2 * 2 * came_round[:, None] + kinds % 2 * came_round).flatten(1)
    return torch.where(regions[:, :, None] == regions[:, None], 0.0, _STRANGERS)
