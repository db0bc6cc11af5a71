"""Oracles: the same backbone written out with loops over windows, the same that pads, rolls and cuts by timm's
functions, and timm's own where every map is whole windows.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from functools import partial
from itertools import product

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models.swin_transformer import PatchMerging, SwinTransformerBlock, window_partition, window_reverse
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from pipeline.model.cascade_mask_rcnn.swin import (
    PadThenShiftBlock,
    SwinBackbone,
    SwinStage,
    stage_windows,
)
from pipeline.model.cascade_mask_rcnn.variants import CascadeVariant
from testing.pretended_cuda import Launch, Wait, pretended_cuda

SIDE, SHIFT = 7, 3
ATTENTION = "_scaled_dot_product_efficient_attention"
WIDTHS = (8, 16, 32, 64)
NARROW = CascadeVariant("narrow", embed_dim=WIDTHS[0], depths=(2, 2, 3, 2), num_heads=(1, 2, 4, 8))


def lively(module: nn.Module, seed: int = 0) -> nn.Module:
    """Weights large enough that attention, its bias table and every norm matter."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "norm" in name and name.endswith("weight"):
            parameter.data = 1 + 0.2 * noise
        elif parameter.ndim > 1 and "table" not in name:
            parameter.data = 1.3 * noise / math.sqrt(parameter[0].numel())
        else:
            parameter.data = 0.5 * noise
    return module.eval().requires_grad_(False)


def maps_of(backbone: SwinBackbone, images: Tensor) -> list[Tensor]:
    return backbone(images, backbone.windows(images.shape[-2:]))


def random_map(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------------------------------------- by hand, in float64
def by_hand_norm(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight + norm.bias


def by_hand_block(block: PadThenShiftBlock, x: Tensor, shifted: bool) -> Tensor:
    """One block on one map ``(H, W, C)``. Windows are found by where their tokens lie on the padded map."""
    H, W, C = x.shape
    padded = x.new_zeros((math.ceil(H / SIDE) * SIDE, math.ceil(W / SIDE) * SIDE, C))
    padded[:H, :W] = by_hand_norm(x, block.norm1)
    shift = SHIFT if shifted else 0
    out = torch.zeros_like(padded)
    for top, left in product(range(0, padded.shape[0], SIDE), range(0, padded.shape[1], SIDE)):
        places = list(product(range(top + shift, top + shift + SIDE), range(left + shift, left + shift + SIDE)))
        # Tokens that came round the edge and tokens that did not must not see each other, along either axis.
        came_round = torch.tensor([(r >= padded.shape[0], c >= padded.shape[1]) for r, c in places])
        rows = [r % padded.shape[0] for r, _ in places]
        columns = [c % padded.shape[1] for _, c in places]
        strangers = (came_round[:, None] != came_round[None]).any(-1)
        out[rows, columns] = by_hand_attention(block.attn, padded[rows, columns], strangers)
    x = x + out[:H, :W]
    hidden = F.linear(by_hand_norm(x, block.norm2), block.mlp.fc1.weight, block.mlp.fc1.bias)
    hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
    return x + F.linear(hidden, block.mlp.fc2.weight, block.mlp.fc2.bias)


def by_hand_attention(attn: nn.Module, tokens: Tensor, strangers: Tensor) -> Tensor:
    """Multi-head attention within one window ``(49, C)``."""
    rows, columns = torch.arange(SIDE**2) // SIDE, torch.arange(SIDE**2) % SIDE
    place = (rows[:, None] - rows + SIDE - 1) * (2 * SIDE - 1) + columns[:, None] - columns + SIDE - 1
    width = tokens.shape[1] // attn.num_heads
    query, key, value = F.linear(tokens, attn.qkv.weight, attn.qkv.bias).chunk(3, dim=1)
    heads = []
    for head in range(attn.num_heads):
        part = slice(head * width, (head + 1) * width)
        logits = query[:, part] @ key[:, part].T / math.sqrt(width)
        logits = logits + attn.relative_position_bias_table[place, head] - 100 * strangers
        heads.append(logits.softmax(dim=1) @ value[:, part])
    return F.linear(torch.cat(heads, dim=1), attn.proj.weight, attn.proj.bias)


def by_hand_merge(merge: nn.Module, x: Tensor) -> Tensor:
    x = F.pad(x, (0, 0, 0, x.shape[1] % 2, 0, x.shape[0] % 2))
    pixels = [x[0::2, 0::2], x[1::2, 0::2], x[0::2, 1::2], x[1::2, 1::2]]
    return F.linear(by_hand_norm(torch.cat(pixels, dim=-1), merge.norm), merge.reduction.weight)


def by_hand_backbone(backbone: SwinBackbone, image: Tensor) -> list[Tensor]:
    """(3, H, W) -> four maps ``(C, H', W')``."""
    embed = backbone.patch_embed
    x = F.conv2d(image[None], embed.proj.weight, embed.proj.bias, stride=4)[0].permute(1, 2, 0)
    x = by_hand_norm(x, embed.norm)
    maps = []
    for i, (stage, norm) in enumerate(zip(backbone.stages, backbone.norms, strict=True)):
        if i > 0:
            x = by_hand_merge(stage.downsample, x)
        for j, block in enumerate(stage.blocks):
            x = by_hand_block(block, x, shifted=j % 2 == 1)
        maps.append(by_hand_norm(x, norm).permute(2, 0, 1))
    return maps


MAP_SIZES = {
    "one token": (1, 1),
    "smaller than a window": (3, 5),
    "one window": (7, 7),
    "whole windows": (14, 21),
    "rows to pad": (9, 14),
    "columns to pad": (14, 8),
    "both to pad": (15, 20),
    "padding wider than the shift": (8, 22),
}


@pytest.mark.parametrize("shifted", [False, True], ids=["plain", "shifted"])
@pytest.mark.parametrize("size", MAP_SIZES.values(), ids=MAP_SIZES.keys())
def test_two_blocks_equal_loops_over_windows(size: tuple[int, int], shifted: bool) -> None:
    stage = lively(SwinStage(16, 1 + shifted, 2, SIDE, merge=False, drop_path=[0.0, 0.0])).double()
    x = random_map(*size, 16).double()
    expected = x
    for i, block in enumerate(stage.blocks):
        expected = by_hand_block(block, expected, shifted=i == 1)
    ours = stage(x[None].flatten(1, 2), stage_windows(size, SIDE, None, x.device))
    torch.testing.assert_close(ours.view(expected.shape), expected, rtol=0, atol=1e-11)


INPUT_SIZES = {"odd maps": (36, 44), "multiple of 32": (64, 96), "strip": (8, 132), "one patch": (4, 4)}


@pytest.mark.parametrize("size", INPUT_SIZES.values(), ids=INPUT_SIZES.keys())
def test_backbone_equals_loops_over_windows(size: tuple[int, int]) -> None:
    backbone = lively(SwinBackbone(NARROW)).double()
    image = random_map(3, *size).double()
    maps = maps_of(backbone, image[None])
    for i, (ours, expected) in enumerate(zip(maps, by_hand_backbone(backbone, image), strict=True)):
        assert ours.shape == (1, WIDTHS[i], *(math.ceil(side / 2 ** (i + 2)) for side in size))
        torch.testing.assert_close(ours[0], expected, rtol=0, atol=1e-10)


def test_a_batch_equals_its_images_one_by_one() -> None:
    backbone = lively(SwinBackbone(NARROW))
    images = random_map(2, 3, 64, 96)
    singles = [maps_of(backbone, image[None]) for image in images]
    for level, both in enumerate(maps_of(backbone, images)):
        alone = torch.cat([maps[level] for maps in singles])
        torch.testing.assert_close(both, alone, rtol=0, atol=2e-5)


# ------------------------------------------------------------------------------------------------------ against timm
def timm_maps(backbone: SwinBackbone, images: Tensor) -> list[Tensor]:
    """Stock timm's maps with the same weights, through the detector's output norms."""
    stock = timm.create_model(
        "swin_tiny_patch4_window7_224",
        features_only=True,
        out_indices=(0, 1, 2, 3),
        embed_dim=NARROW.embed_dim,
        depths=NARROW.depths,
        num_heads=NARROW.num_heads,
        strict_img_size=False,
        always_partition=True,
    ).eval()
    weights = {k: v for k, v in backbone.state_dict().items() if not k.startswith("norms.")}
    renamed = {k.replace("stages.", "layers_", 1): v for k, v in weights.items()}
    stock.load_state_dict(renamed, strict=True)
    with torch.no_grad():
        return [norm(x).permute(0, 3, 1, 2) for norm, x in zip(backbone.norms, stock(images), strict=True)]


def test_equals_timm_where_every_map_is_whole_windows() -> None:
    backbone, images = lively(SwinBackbone(NARROW)), random_map(1, 3, 448, 672)
    for ours, theirs in zip(maps_of(backbone, images), timm_maps(backbone, images), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_differs_from_timm_where_maps_need_padding() -> None:
    """timm shifts before it pads: the guard against building on its blocks as they are."""
    backbone, images = lively(SwinBackbone(NARROW)), random_map(1, 3, 224, 320)
    for ours, theirs in zip(maps_of(backbone, images), timm_maps(backbone, images), strict=True):
        assert (ours - theirs).abs().max() > 0.1


# ------------------------------------------------------------------------------- against pad, roll and cut, bit by bit
class RollingBlock(SwinTransformerBlock):
    """A block that finds its windows by timm's functions, with timm's attention and masks."""

    def __init__(self, dim: int, num_heads: int, window_size: int, shifted: bool, drop_path: float) -> None:
        size, shift = (window_size, window_size), window_size // 2 if shifted else 0
        kind = {"window_size": window_size, "shift_size": shift, "always_partition": True, "dynamic_mask": True}
        super().__init__(dim, size, num_heads, drop_path=drop_path, **kind)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path1(self.attend(self.norm1(x)))
        return x + self.drop_path2(self.mlp(self.norm2(x)))

    def attend(self, x: Tensor) -> Tensor:
        _, H, W, C = x.shape
        side, shift = self.window_size[0], self.shift_size[0]
        x = F.pad(x, (0, 0, 0, -W % side, 0, -H % side))
        padded, mask = x.shape[1:3], self.get_attn_mask(x)
        x = torch.roll(x, shifts=(-shift, -shift), dims=(1, 2))
        windows = self.attn(window_partition(x, self.window_size).view(-1, side * side, C), mask=mask)
        x = window_reverse(windows.view(-1, side, side, C), self.window_size, *padded)
        return torch.roll(x, shifts=(shift, shift), dims=(1, 2))[:, :H, :W]


class RollingBackbone(nn.Module):
    """The backbone without a table, with the same names of weights."""

    def __init__(self, variant: CascadeVariant, drop_path_rate: float = 0.0) -> None:
        super().__init__()
        ours = SwinBackbone(variant, drop_path_rate)
        self.patch_embed, self.norms = ours.patch_embed, ours.norms
        self.stages = nn.ModuleList(nn.Module() for _ in ours.stages)
        rates = iter([drop_path_rate * i / (sum(variant.depths) - 1) for i in range(sum(variant.depths))])
        for i, (stage, depth, heads) in enumerate(zip(self.stages, variant.depths, variant.num_heads, strict=True)):
            dim = variant.embed_dim * 2**i
            stage.downsample = PatchMerging(dim // 2) if i else nn.Identity()
            blocks = (RollingBlock(dim, heads, variant.window_size, j % 2 == 1, next(rates)) for j in range(depth))
            stage.blocks = nn.Sequential(*blocks)

    def forward(self, images: Tensor) -> list[Tensor]:
        x, maps = self.patch_embed(images), []
        for stage, norm in zip(self.stages, self.norms, strict=True):
            x = stage.blocks(stage.downsample(x))
            maps.append(norm(x).permute(0, 3, 1, 2))
        return maps


def both(variant: CascadeVariant, drop_path_rate: float = 0.0) -> tuple[SwinBackbone, RollingBackbone]:
    ours, rolling = SwinBackbone(variant, drop_path_rate), RollingBackbone(variant, drop_path_rate)
    lively(rolling)
    ours.load_state_dict(rolling.state_dict(), strict=True)
    return ours.eval().requires_grad_(False), rolling


def set_fused(fused: bool, *backbones: nn.Module) -> None:
    for backbone in backbones:
        for module in backbone.modules():
            if hasattr(module, "fused_attn"):
                module.fused_attn = fused


SIZES = st.integers(1, 40)
VARIANTS = st.builds(
    CascadeVariant,
    name=st.just("random"),
    embed_dim=st.just(8),
    depths=st.tuples(*[st.integers(1, 3)] * 4),
    num_heads=st.sampled_from([(1, 2, 4, 8), (2, 4, 4, 16)]),
    window_size=st.sampled_from([7, 7, 7, 1, 2, 3, 4, 8, 12]),
)


@given(VARIANTS, SIZES, SIZES, st.integers(1, 3), st.booleans())
@settings(max_examples=40, deadline=None)
def test_no_bit_differs_from_rolling(variant: CascadeVariant, height: int, width: int, B: int, fused: bool) -> None:
    ours, rolling = both(variant)
    set_fused(fused, ours, rolling)
    images = random_map(B, 3, 4 * height, 4 * width)
    expected, computed = rolling(images), maps_of(ours, images)
    ours.freeze_biases(torch.float32)
    for wanted, *found in zip(expected, computed, maps_of(ours, images), strict=True):
        for found_map in found:
            assert found_map.shape == wanted.shape
            assert found_map.stride() == wanted.stride()
            assert torch.equal(found_map, wanted)


def gradients(backbone: nn.Module, maps: list[Tensor]) -> dict[str, Tensor]:
    weights = [random_map(*m.shape, seed=2).double() for m in maps]
    sum((m * weight).sum() for m, weight in zip(maps, weights, strict=True)).backward()
    return {name: parameter.grad for name, parameter in backbone.named_parameters()}


@pytest.mark.parametrize("recomputed", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
def test_gradients_equal_those_of_rolling(fused: bool, recomputed: bool) -> None:
    """With stochastic depth, whose drawings are the same from the same random state."""
    ours, rolling = both(NARROW, drop_path_rate=0.5)
    set_fused(fused, ours, rolling)
    for backbone in (ours, rolling):
        backbone.double().train().requires_grad_(True)
    images = random_map(3, 3, 36, 60).double()
    torch.manual_seed(0)
    expected = gradients(rolling, rolling(images))
    if recomputed:
        for module in ours.modules():
            if isinstance(module, PadThenShiftBlock):
                module.forward = partial(checkpoint, module.forward, use_reentrant=False)
    torch.manual_seed(0)
    found = gradients(ours, maps_of(ours, images))
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        scale = expected[name].abs().max().item()
        torch.testing.assert_close(gradient, expected[name], rtol=0, atol=1e-12 * max(scale, 1), msg=name)


def test_images_that_are_no_whole_patches_are_refused() -> None:
    with pytest.raises(ValueError, match="images of 32 x 46: sides must be multiples of 4"):
        SwinBackbone(NARROW).windows((32, 46))


# ------------------------------------------------------------------------------------------- what a device has to do
def on_gpu(backbone: SwinBackbone, images: Tensor) -> tuple[list[Launch], list[Wait], list[Tensor]]:
    """What a forward asks of a pretended GPU, and the maps, brought back."""
    with pretended_cuda() as gpu, torch.no_grad():
        moved, pixels = backbone.to("cuda"), images.to("cuda")
        windows = moved.windows(images.shape[-2:])
        launches, waits = len(gpu.launches), len(gpu.waits)
        maps = moved(pixels, windows)
        launches, waits = gpu.launches[launches:], gpu.waits[waits:]
        return launches, waits, [m.cpu() for m in maps]


def frozen(variant: CascadeVariant, dtype: torch.dtype = torch.float32) -> SwinBackbone:
    """As inference has it."""
    backbone = lively(SwinBackbone(variant)).to(dtype)
    set_fused(True, backbone)
    backbone.freeze_biases(dtype)
    return backbone.to(memory_format=torch.channels_last)


IN_EACH_BLOCK = {
    "native_layer_norm": 2,
    "cat": 1,  # a token of zeros, for padding
    "index_select": 2,  # into windows, and back
    "addmm": 4,
    ATTENTION: 1,
    "add": 2,
    "gelu": 1,
}


@pytest.mark.parametrize("window_size", [7, 8, 12])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_launches(dtype: torch.dtype, window_size: int) -> None:
    """13 a block, 14 where windows are shifted: no copy but the two moves, no cast, and no bias is padded.

    Nor does the host wait. To pad, roll and cut took 16 and 21, biases were made in each call, and autocast cast all.
    """
    variant = replace(NARROW, window_size=window_size)
    launches, waits, _ = on_gpu(frozen(variant, dtype), random_map(2, 3, 72, 100).to(dtype))
    blocks, shifted = sum(variant.depths), sum(depth // 2 for depth in variant.depths)
    expected = Counter({op: count * blocks for op, count in IN_EACH_BLOCK.items()})
    expected["index_select"] += shifted  # the bias of each window
    expected += {"repeat": 4, "native_layer_norm": 4}  # of the stages
    expected += {"convolution": 1, "native_layer_norm": 1}  # the embedding
    expected += {"cat": 3, "index_select": 3, "native_layer_norm": 3, "mm": 3}  # the mergings
    assert Counter(launch.op.removeprefix("aten::") for launch in launches) == expected
    assert not waits


def test_bfloat16_is_near_float32() -> None:
    images = random_map(2, 3, 72, 100)
    _, _, maps = on_gpu(frozen(NARROW, torch.bfloat16), images.bfloat16())
    for half, exact in zip(maps, maps_of(frozen(NARROW), images), strict=True):
        assert half.dtype == torch.bfloat16
        assert F.cosine_similarity(half.float().flatten(), exact.flatten(), dim=0) > 0.995


def test_frozen_biases_are_no_weights() -> None:
    backbone, plain = frozen(NARROW), SwinBackbone(NARROW)
    assert backbone.state_dict().keys() == plain.state_dict().keys()
    backbone.load_state_dict(plain.state_dict(), strict=True)


def test_plain_attention_is_products_and_a_softmax() -> None:
    backbone = frozen(NARROW)
    set_fused(False, backbone)
    launches, _, _ = on_gpu(backbone, random_map(1, 3, 32, 32))
    counts = Counter(launch.op.removeprefix("aten::") for launch in launches)
    assert counts["_softmax"] == sum(NARROW.depths)
    assert counts["bmm"] == 2 * sum(NARROW.depths)
    assert not counts[ATTENTION]


# ------------------------------------------------------------------------------------------------- stochastic depth
def test_drop_path_acts_in_training_only() -> None:
    backbone, images = lively(SwinBackbone(NARROW, drop_path_rate=0.5)), random_map(2, 3, 64, 64)
    plain = SwinBackbone(NARROW)
    plain.load_state_dict(backbone.state_dict())
    torch.manual_seed(0)
    assert all(
        torch.equal(a, b) for a, b in zip(maps_of(backbone.eval(), images), maps_of(plain.eval(), images), strict=True)
    )
    first, second = maps_of(backbone.train(), images), maps_of(backbone, images)
    assert not torch.equal(first[3], second[3])


def test_drop_path_grows_linearly_over_the_blocks() -> None:
    backbone = SwinBackbone(NARROW, drop_path_rate=0.4)
    blocks = [block for stage in backbone.stages for block in stage.blocks]
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in blocks]
    assert rates == pytest.approx([0.05 * i for i in range(9)])
    assert rates == [getattr(block.drop_path2, "drop_prob", 0.0) for block in blocks]
