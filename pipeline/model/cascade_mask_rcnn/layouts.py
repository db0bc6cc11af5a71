"""The layouts in which weights are published, and how each maps to this project's names.

Pure functions on state dicts; reading and writing files is `pipeline.model.files`' business.

    native      this project's own names
    official    Swin-Transformer-Object-Detection (mmdet 2.x); ModelScope uses the same names
    mmdet3      mmdet 3.x: other names in the backbone, and another channel order when patches are merged
    microsoft   ImageNet classifier of microsoft/Swin-Transformer: a backbone to start training from
    timm        the same from timm: each merging belongs to the stage after it
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from pipeline.model.cascade_mask_rcnn.cascade import BOX_POOL_SIDE
from pipeline.model.cascade_mask_rcnn.variants import PUBLISHED_VARIANTS, CascadeVariant
from pipeline.model.files.state_dict import LayoutError, StateDict

_Rules = list[tuple[str, str | Callable[[re.Match[str]], str]]]

BACKBONE_LAYOUTS = ("microsoft", "timm")
BACKBONE_SIZES = ("embed_dim", "depths", "num_heads", "window_size")

# Buffers that the code recomputes, wherever they are; a classifier's own head has no use here.
_DERIVED = re.compile(r"(^|\.)(relative_position_index|attn_mask)$")
_CLASSIFIER = re.compile(r"^(norm\.|head\.)")

_OFFICIAL_BACKBONE: _Rules = [
    (r"^layers\.(\d)\.blocks\.", r"stages.\1.blocks."),
    (r"^layers\.(\d)\.downsample\.", lambda m: f"stages.{int(m[1]) + 1}.downsample."),
    (r"^norm(\d)\.", r"norms.\1."),
]
_TIMM_BACKBONE: _Rules = [(r"^layers\.(\d)\.", r"stages.\1.")]
_MMDET3_BACKBONE: _Rules = [
    (r"\.attn\.w_msa\.", ".attn."),
    (r"\.ffn\.layers\.0\.0\.", ".mlp.fc1."),
    (r"\.ffn\.layers\.1\.", ".mlp.fc2."),
    (r"^stages\.(\d)\.downsample\.", lambda m: f"stages.{int(m[1]) + 1}.downsample."),
    (r"^patch_embed\.projection\.", "patch_embed.proj."),
    (r"^norm(\d)\.", r"norms.\1."),
]
_HEADS: _Rules = [
    (r"^neck\.lateral_convs\.(\d)\.conv\.", r"neck.laterals.\1."),
    (r"^neck\.fpn_convs\.(\d)\.conv\.", r"neck.outputs.\1."),
    (r"^rpn_head\.rpn_conv\.", "rpn.conv."),
    (r"^rpn_head\.rpn_cls\.", "rpn.objectness."),
    (r"^rpn_head\.rpn_reg\.", "rpn.deltas."),
    (r"^roi_head\.bbox_head\.(\d)\.shared_convs\.(\d+)\.conv\.", r"box_heads.stages.\1.convs.\2.conv."),
    (r"^roi_head\.bbox_head\.(\d)\.shared_convs\.(\d+)\.bn\.", r"box_heads.stages.\1.convs.\2.norm."),
    (r"^roi_head\.bbox_head\.(\d)\.shared_fcs\.0\.", r"box_heads.stages.\1.fc."),
    (r"^roi_head\.bbox_head\.(\d)\.fc_cls\.", r"box_heads.stages.\1.classify."),
    (r"^roi_head\.bbox_head\.(\d)\.fc_reg\.", r"box_heads.stages.\1.regress."),
    (r"^roi_head\.mask_head\.(\d)\.convs\.(\d+)\.conv\.", r"mask_heads.stages.\1.convs.\2.conv."),
    (r"^roi_head\.mask_head\.(\d)\.upsample\.", r"mask_heads.stages.\1.upsample."),
    (r"^roi_head\.mask_head\.(\d)\.conv_logits\.", r"mask_heads.stages.\1.predict."),
]


def detect_layout(keys: Iterable[str]) -> str:
    """Which of the layouts above the key names belong to (prefixes already stripped).

    Raises:
        LayoutError: none of them.
    """
    names = set(keys)
    if "rpn.objectness.weight" in names:
        return "native"
    if any(k.startswith("backbone.stages.") for k in names) and any(k.startswith("rpn_head.") for k in names):
        return "mmdet3"
    if any(k.startswith("backbone.layers.") for k in names):
        return "official"
    if any(k.startswith("layers.0.blocks.") for k in names):
        return "timm" if any(k.startswith("layers.3.downsample.") for k in names) else "microsoft"
    sample = ", ".join(sorted(names)[:5]) or "no tensors at all"
    raise LayoutError(
        f"these are not the weights of a Cascade Mask R-CNN Swin or of a Swin backbone (first keys: {sample})"
    )


def to_native(state: Mapping[str, Tensor], layout: str) -> StateDict:
    """The same weights under this project's names (a backbone layout gives ``backbone.*`` alone)."""
    if layout == "native":
        return dict(state)
    native: StateDict = {}
    for key, value in state.items():
        if _DERIVED.search(key) or (layout in BACKBONE_LAYOUTS and _CLASSIFIER.match(key)):
            continue
        if layout == "mmdet3" and ".downsample." in key:
            value = _merge_order_from_mmdet3(value)
        native[_native_name(key, layout)] = value
    return native


def _native_name(key: str, layout: str) -> str:
    if layout == "timm":
        return "backbone." + _rename(key, _TIMM_BACKBONE)
    if layout == "microsoft":
        return "backbone." + _rename(key, _OFFICIAL_BACKBONE)
    if not key.startswith("backbone."):
        return _rename(key, _HEADS)
    rules = _OFFICIAL_BACKBONE if layout == "official" else _MMDET3_BACKBONE
    return "backbone." + _rename(key.removeprefix("backbone."), rules)


def _rename(key: str, rules: _Rules) -> str:
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key


def _merge_order_from_mmdet3(weight: Tensor) -> Tensor:
    """Patch merging, last axis: channel-major with pixels (0,0) (0,1) (1,0) (1,1), as ``nn.Unfold`` gives them,
    to pixel-major with (0,0) (1,0) (0,1) (1,1), as the official code and timm concatenate them."""
    *rest, width = weight.shape
    by_pixel = weight.reshape(*rest, width // 4, 4).transpose(-1, -2)
    return by_pixel[..., [0, 2, 1, 3], :].reshape(*rest, width)


def infer_variant(native: Mapping[str, Tensor]) -> CascadeVariant:
    """The architecture whose weights these are, read off their shapes.

    Args:
        native: a detector's weights under this project's names.

    Raises:
        LayoutError: a tensor that the sizes are read from is missing, or the sizes make no model.
    """

    def shape(key: str, axes: int) -> torch.Size:
        if key not in native:
            raise LayoutError(f"the weights lack {key!r}: not a Cascade Mask R-CNN Swin, or only a part of one")
        if native[key].dim() != axes:
            raise LayoutError(f"{key!r} has shape {tuple(native[key].shape)}, expected {axes} axes")
        return native[key].shape

    def count(pattern: str) -> int:
        found = {int(m[1]) for key in native if (m := re.match(pattern, key))}
        return max(found) + 1 if found else 0

    depths = [count(rf"backbone\.stages\.{i}\.blocks\.(\d+)\.") for i in range(4)]
    tables = [shape(f"backbone.stages.{i}.blocks.0.attn.relative_position_bias_table", 2) for i in range(4)]
    box_convs, mask_convs = (count(rf"{h}_heads\.stages\.0\.convs\.(\d+)\.") for h in ("box", "mask"))
    box_fc, box_features = shape("box_heads.stages.0.fc.weight", 2)
    try:
        variant = CascadeVariant(
            name="custom",
            embed_dim=shape("backbone.patch_embed.proj.weight", 4)[0],
            depths=(depths[0], depths[1], depths[2], depths[3]),
            num_heads=(tables[0][1], tables[1][1], tables[2][1], tables[3][1]),
            window_size=(round(tables[0][0] ** 0.5) + 1) // 2,
            num_classes=shape("box_heads.stages.0.classify.weight", 2)[0] - 1,
            fpn_channels=shape("rpn.conv.weight", 4)[0],
            box_convs=box_convs,
            box_channels=box_features // BOX_POOL_SIDE**2,
            box_fc=box_fc,
            mask_convs=mask_convs,
            mask_channels=shape("mask_heads.stages.0.upsample.weight", 4)[0],
        )
    except ValueError as error:
        raise LayoutError(f"the shapes of the weights make no model: {error}") from error
    return _named(variant)


def _named(variant: CascadeVariant) -> CascadeVariant:
    """The published variant of the same sizes, whatever the number of classes, or this one as it is."""
    for known in PUBLISHED_VARIANTS:
        same = CascadeVariant(**{**vars(known), "num_classes": variant.num_classes})
        if CascadeVariant(**{**vars(same), "name": variant.name}) == variant:
            return same
    return variant


def infer_backbone(weights: Mapping[str, Tensor]) -> CascadeVariant:
    """The variant with such a backbone, read off the shapes; the rest of it keeps its defaults.

    Raises:
        LayoutError: a tensor that the sizes are read from is missing.
    """
    embedding = "backbone.patch_embed.proj.weight"
    tables = [f"backbone.stages.{i}.blocks.0.attn.relative_position_bias_table" for i in range(4)]
    for key in (embedding, *tables):
        if key not in weights:
            raise LayoutError(f"the weights lack {key!r}: not a Swin backbone, or only a part of one")
    depths = [len({k.split(".")[4] for k in weights if k.startswith(f"backbone.stages.{i}.blocks.")}) for i in range(4)]
    heads = [weights[table].shape[1] for table in tables]
    found = CascadeVariant(
        name="custom",
        embed_dim=weights[embedding].shape[0],
        depths=(depths[0], depths[1], depths[2], depths[3]),
        num_heads=(heads[0], heads[1], heads[2], heads[3]),
        window_size=(round(weights[tables[0]].shape[0] ** 0.5) + 1) // 2,
    )
    same = (
        known for known in PUBLISHED_VARIANTS if all(getattr(known, k) == getattr(found, k) for k in BACKBONE_SIZES)
    )
    return next(same, found)


def covered_by_classifier(name: str) -> bool:
    """Whether a classifier has this weight of the detector: all of the backbone but the four output norms."""
    return name.startswith("backbone.") and not name.startswith("backbone.norms.")
