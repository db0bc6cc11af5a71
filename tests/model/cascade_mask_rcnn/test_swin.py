"""Oracles: the same backbone written out with loops over windows, and timm's where every map is whole windows."""

from __future__ import annotations

import math
from itertools import product

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.model.cascade_mask_rcnn.swin import PadThenShiftBlock, SwinBackbone, SwinStage
from pipeline.model.cascade_mask_rcnn.variants import CascadeVariant

SIDE, SHIFT = 7, 3
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
    image = F.pad(image, (0, -image.shape[2] % 4, 0, -image.shape[1] % 4))
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
    torch.testing.assert_close(stage(x[None])[0], expected, rtol=0, atol=1e-11)


INPUT_SIZES = {"odd": (33, 47), "multiple of 32": (64, 96), "strip": (8, 130), "smaller than a patch": (3, 2)}


@pytest.mark.parametrize("size", INPUT_SIZES.values(), ids=INPUT_SIZES.keys())
def test_backbone_equals_loops_over_windows(size: tuple[int, int]) -> None:
    backbone = lively(SwinBackbone(NARROW)).double()
    image = random_map(3, *size).double()
    maps = backbone(image[None])
    for i, (ours, expected) in enumerate(zip(maps, by_hand_backbone(backbone, image), strict=True)):
        assert ours.shape == (1, WIDTHS[i], *(math.ceil(side / 2 ** (i + 2)) for side in size))
        torch.testing.assert_close(ours[0], expected, rtol=0, atol=1e-10)


def test_a_batch_equals_its_images_one_by_one() -> None:
    backbone = lively(SwinBackbone(NARROW))
    images = random_map(2, 3, 64, 96)
    singles = [backbone(image[None]) for image in images]
    for level, both in enumerate(backbone(images)):
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
    for ours, theirs in zip(backbone(images), timm_maps(backbone, images), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_differs_from_timm_where_maps_need_padding() -> None:
    """timm shifts before it pads: the guard against building on its blocks as they are."""
    backbone, images = lively(SwinBackbone(NARROW)), random_map(1, 3, 224, 320)
    for ours, theirs in zip(backbone(images), timm_maps(backbone, images), strict=True):
        assert (ours - theirs).abs().max() > 0.1


# ------------------------------------------------------------------------------------------------- stochastic depth
def test_drop_path_acts_in_training_only() -> None:
    backbone, images = lively(SwinBackbone(NARROW, drop_path_rate=0.5)), random_map(2, 3, 64, 64)
    plain = SwinBackbone(NARROW)
    plain.load_state_dict(backbone.state_dict())
    torch.manual_seed(0)
    assert all(torch.equal(a, b) for a, b in zip(backbone.eval()(images), plain.eval()(images), strict=True))
    first, second = backbone.train()(images), backbone(images)
    assert not torch.equal(first[3], second[3])


def test_drop_path_grows_linearly_over_the_blocks() -> None:
    backbone = SwinBackbone(NARROW, drop_path_rate=0.4)
    blocks = [block for stage in backbone.stages for block in stage.blocks]
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in blocks]
    assert rates == pytest.approx([0.05 * i for i in range(9)])
    assert rates == [getattr(block.drop_path2, "drop_prob", 0.0) for block in blocks]
