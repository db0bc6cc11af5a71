"""Lively pseudo-random weights, the same on every machine, under the names of every published layout.

Each tensor is drawn from a PCG64 stream of its own, seeded by a hash of its official name; only the raw 64-bit
output is used, which numpy guarantees for good. For the golden model a calibration file then replaces the
normalisation statistics and most biases, which makes the detections varied and the scores graded. The golden
files hold the digest of the weights they were made with.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.model.cascade_mask_rcnn.variants import CascadeVariant
from pipeline.model.categories import COCO_CATEGORIES

GOLDEN_DIR = Path(__file__).parent / "golden"
GOLDEN_VARIANT = CascadeVariant("tiny", embed_dim=64, depths=(2, 2, 2, 2), num_heads=(2, 4, 8, 16))
COCO_NAMES = tuple(category.name for category in COCO_CATEGORIES)

Shapes = Iterator[tuple[str, tuple[int, ...]]]

NUM_STAGES = 3
BATCHES_SEEN = 7330 * 36  # what a 36-epoch schedule leaves in BatchNorm's counters

# A weight's standard deviation times the root of its fan-in, by a part of its name; the first match counts.
_GAINS = {
    "patch_embed.proj.": 1.0,
    "attn.qkv.": 1.3,
    "attn.proj.": 1.2,
    "mlp.": 1.2,
    "reduction.": 1.0,
    "lateral_convs.": 0.8,
    "fpn_convs.0.": 0.75,
    "fpn_convs.1.": 1.1,
    "fpn_convs.2.": 1.6,
    "fpn_convs.3.": 2.6,
    "rpn_conv.": 1.2,
    "rpn_cls.": 1.4,
    "rpn_reg.": 0.2,
    "shared_convs.": 1.4,
    "shared_fcs.": 1.4,
    "fc_cls.": 7.0,
    "fc_reg.": 1.6,
    "convs.": 1.4,
    "upsample.": 1.4,
    "conv_logits.": 3.0,
}


def official_weights(variant: CascadeVariant, calibration: Path | None = None) -> dict[str, Tensor]:
    """The state dict under the official repository's names, integer buffers included."""
    state = {name: _tensor(name, shape, variant) for name, shape in official_shapes(variant)}
    if calibration is not None:
        with np.load(calibration) as known:
            for name in known.files:
                assert state[name].shape == known[name].shape, name
                state[name] = torch.from_numpy(known[name].astype(np.float32))
    return state


def golden_weights() -> dict[str, Tensor]:
    """The weights behind the golden files."""
    return official_weights(GOLDEN_VARIANT, GOLDEN_DIR / "calib_tiny.npz")


def digest(state: Mapping[str, Tensor]) -> str:
    """sha256 over names and bytes in name order, as the golden files state it."""
    total = hashlib.sha256()
    for name in sorted(state):
        total.update(name.encode())
        total.update(state[name].contiguous().numpy().tobytes())
    return total.hexdigest()


def official_shapes(variant: CascadeVariant) -> Shapes:
    """Every name of an official checkpoint, with its shape."""
    yield from _backbone_shapes(variant)
    width = variant.fpn_channels
    for i in range(4):
        yield from _affine(f"neck.lateral_convs.{i}.conv", (width, variant.embed_dim * 2**i, 1, 1))
        yield from _affine(f"neck.fpn_convs.{i}.conv", (width, width, 3, 3))
    yield from _affine("rpn_head.rpn_conv", (width, width, 3, 3))
    yield from _affine("rpn_head.rpn_cls", (3, width, 1, 1))
    yield from _affine("rpn_head.rpn_reg", (12, width, 1, 1))
    for stage in range(NUM_STAGES):
        yield from _box_head_shapes(f"roi_head.bbox_head.{stage}.", variant)
        yield from _mask_head_shapes(f"roi_head.mask_head.{stage}.", variant)


def _affine(name: str, weight: tuple[int, ...], bias: int | None = None) -> Shapes:
    yield f"{name}.weight", weight
    yield f"{name}.bias", (weight[0] if bias is None else bias,)


def _backbone_shapes(variant: CascadeVariant) -> Shapes:
    side = variant.window_size
    yield from _affine("backbone.patch_embed.proj", (variant.embed_dim, 3, 4, 4))
    yield from _affine("backbone.patch_embed.norm", (variant.embed_dim,))
    for i, (depth, heads) in enumerate(zip(variant.depths, variant.num_heads, strict=True)):
        width = variant.embed_dim * 2**i
        for j in range(depth):
            block = f"backbone.layers.{i}.blocks.{j}."
            yield from _affine(block + "norm1", (width,))
            yield block + "attn.relative_position_bias_table", ((2 * side - 1) ** 2, heads)
            yield block + "attn.relative_position_index", (side**2, side**2)
            yield from _affine(block + "attn.qkv", (3 * width, width))
            yield from _affine(block + "attn.proj", (width, width))
            yield from _affine(block + "norm2", (width,))
            yield from _affine(block + "mlp.fc1", (4 * width, width))
            yield from _affine(block + "mlp.fc2", (width, 4 * width))
        if i < 3:
            yield f"backbone.layers.{i}.downsample.reduction.weight", (2 * width, 4 * width)
            yield from _affine(f"backbone.layers.{i}.downsample.norm", (4 * width,))
        yield from _affine(f"backbone.norm{i}", (width,))


def _box_head_shapes(head: str, variant: CascadeVariant) -> Shapes:
    width, hidden = variant.fpn_channels, variant.box_fc
    for j in range(variant.box_convs):
        block = f"{head}shared_convs.{j}."
        yield block + "conv.weight", (variant.box_channels, width, 3, 3)
        width = variant.box_channels
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            yield f"{block}bn.{leaf}", (width,)
        yield block + "bn.num_batches_tracked", ()
    yield from _affine(head + "shared_fcs.0", (hidden, width * 49))
    yield from _affine(head + "fc_cls", (variant.num_classes + 1, hidden))
    yield from _affine(head + "fc_reg", (4 * variant.num_classes, hidden))


def _mask_head_shapes(head: str, variant: CascadeVariant) -> Shapes:
    width = variant.fpn_channels
    for j in range(variant.mask_convs):
        yield from _affine(f"{head}convs.{j}.conv", (variant.mask_channels, width, 3, 3))
        width = variant.mask_channels
    yield from _affine(head + "upsample", (width, width, 2, 2), bias=width)
    yield from _affine(head + "conv_logits", (variant.num_classes, width, 1, 1))


def _tensor(name: str, shape: tuple[int, ...], variant: CascadeVariant) -> Tensor:
    leaf = name.rsplit(".", 1)[1]
    is_norm = "norm" in name or ".bn." in name
    if leaf == "relative_position_index":
        return _relative_position_index(variant.window_size)
    if leaf == "num_batches_tracked":
        return torch.tensor(BATCHES_SEEN)
    if leaf == "relative_position_bias_table":
        return _draw(name, shape, 0.7)
    if leaf == "running_mean":
        return _draw(name, shape, 0.2)
    if leaf == "running_var":
        return _draw(name, shape, 0.2, mean=1.0)
    if leaf == "bias":
        return _draw(name, shape, 0.15 if is_norm else 0.08)
    if is_norm:
        return _draw(name, shape, 0.15, mean=1.0)
    # A transposed convolution of stride 2 and side 2: each output pixel has one tap in each input channel.
    fan_in = shape[0] if "upsample" in name else math.prod(shape[1:])
    gain = next(value for part, value in _GAINS.items() if f".{part}" in name)
    return _draw(name, shape, float(gain / np.sqrt(fan_in)))


def _draw(name: str, shape: tuple[int, ...], std: float, mean: float = 0.0) -> Tensor:
    """Uniform values of this deviation and mean."""
    count = math.prod(shape)
    seed = int.from_bytes(hashlib.sha256(f"parity-v1:{name}".encode()).digest()[:16], "little")
    words = np.asarray(np.random.PCG64(seed).random_raw((count + 1) // 2), "<u8").view("<u4")[:count]
    unit = words.astype(np.float64) * 2.0**-31 - 1.0
    return torch.from_numpy((unit * (np.sqrt(3.0) * std) + mean).astype(np.float32).reshape(shape))


def _relative_position_index(side: int) -> Tensor:
    row, column = torch.arange(side**2) // side, torch.arange(side**2) % side
    rows, columns = row[:, None] - row + side - 1, column[:, None] - column + side - 1
    return rows * (2 * side - 1) + columns


def to_mmdet3(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same weights as mmdet 3.x names and orders them."""
    return {_mmdet3_name(name): _mmdet3_order(name, value) for name, value in state.items()}


def _mmdet3_name(name: str) -> str:
    if not name.startswith("backbone."):
        return name
    for old, new in (
        ("backbone.layers.", "backbone.stages."),
        (".attn.", ".attn.w_msa."),
        (".mlp.fc1.", ".ffn.layers.0.0."),
        (".mlp.fc2.", ".ffn.layers.1."),
        ("patch_embed.proj.", "patch_embed.projection."),
    ):
        name = name.replace(old, new)
    return name


def _mmdet3_order(name: str, value: Tensor) -> Tensor:
    """Merged pixels: block by block in column-major order, to channel by channel in row-major order."""
    if ".downsample." not in name:
        return value.clone()
    channels = value.shape[-1] // 4
    official_pixels = [(0, 0), (1, 0), (0, 1), (1, 1)]
    mmdet3_pixels = [(0, 0), (0, 1), (1, 0), (1, 1)]
    source = [official_pixels.index(pixel) * channels + c for c in range(channels) for pixel in mmdet3_pixels]
    return value[..., source].clone()


def save_official(state: Mapping[str, Tensor], path: Path) -> Path:
    """A file like those of the official repository's release page."""
    meta = {"epoch": 36, "iter": BATCHES_SEEN, "mmcv_version": "1.3.1", "CLASSES": COCO_NAMES}
    torch.save({"meta": meta, "state_dict": dict(state)}, path)
    return path


def save_modelscope(state: Mapping[str, Tensor], path: Path) -> Path:
    """A file like ModelScope's ``pytorch_model.pt``."""
    torch.save({"state_dict": dict(state)}, path)
    return path


def save_mmdet3(state: Mapping[str, Tensor], path: Path) -> Path:
    """A file like those that mmdet 3.x saves."""
    meta = {"epoch": 36, "mmdet_version": "3.3.0", "dataset_meta": {"classes": list(COCO_NAMES)}}
    torch.save({"meta": meta, "state_dict": to_mmdet3(state)}, path)
    return path
