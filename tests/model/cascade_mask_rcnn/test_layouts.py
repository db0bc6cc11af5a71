"""Names and orders of published weights; the numbers of keys and parameters are the published models'."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from pipeline.model.cascade_mask_rcnn.detector import CascadeMaskRCNN
from pipeline.model.cascade_mask_rcnn.layouts import detect_layout, infer_variant, to_native
from pipeline.model.cascade_mask_rcnn.swin import PatchMerging, merged_tokens
from pipeline.model.cascade_mask_rcnn.variants import SWIN_B, SWIN_S, SWIN_T, CascadeVariant
from pipeline.model.files.state_dict import LayoutError, check_keys
from testing.small_model import SMALL
from tests.model.golden_weights import GOLDEN_VARIANT, official_shapes, to_mmdet3

State = dict[str, Tensor]


def meta_state(variant: CascadeVariant) -> State:
    """Official names and shapes without numbers."""
    return {name: torch.empty(shape, device="meta") for name, shape in official_shapes(variant)}


# ------------------------------------------------------------------------------------------------------------- layouts
def test_official_names_fill_the_model_exactly(small_state: State) -> None:
    native = to_native(small_state, "official")
    model = CascadeMaskRCNN(SMALL)
    model.load_state_dict(native, strict=True)
    for name in ("backbone.patch_embed.proj.weight", "backbone.stages.0.blocks.1.attn.qkv.weight"):
        assert torch.equal(model.state_dict()[name], small_state[name.replace("stages", "layers")])


# official name: native name
RENAMED = {
    "backbone.layers.0.downsample.reduction.weight": "backbone.stages.1.downsample.reduction.weight",
    "backbone.layers.2.blocks.1.attn.relative_position_bias_table": (
        "backbone.stages.2.blocks.1.attn.relative_position_bias_table"
    ),
    "backbone.norm3.bias": "backbone.norms.3.bias",
    "neck.lateral_convs.1.conv.weight": "neck.laterals.1.weight",
    "neck.fpn_convs.3.conv.bias": "neck.outputs.3.bias",
    "rpn_head.rpn_cls.weight": "rpn.objectness.weight",
    "roi_head.bbox_head.2.shared_convs.1.bn.running_var": "box_heads.stages.2.convs.1.norm.running_var",
    "roi_head.bbox_head.0.fc_reg.weight": "box_heads.stages.0.regress.weight",
    "roi_head.mask_head.1.conv_logits.bias": "mask_heads.stages.1.predict.bias",
}


@pytest.mark.parametrize(("official", "native"), RENAMED.items(), ids=RENAMED.keys())
def test_official_names(official: str, native: str, small_state: State) -> None:
    assert to_native(small_state, "official")[native] is small_state[official]


def test_derived_buffers_are_left_out(small_state: State) -> None:
    assert any(name.endswith("relative_position_index") for name in small_state)
    assert not any(name.endswith("relative_position_index") for name in to_native(small_state, "official"))


def test_mmdet3_gives_the_same_weights(small_state: State) -> None:
    official, mmdet3 = to_native(small_state, "official"), to_native(to_mmdet3(small_state), "mmdet3")
    assert official.keys() == mmdet3.keys()
    assert all(torch.equal(official[name], mmdet3[name]) for name in official)


def test_patch_merging_computes_the_same_in_every_order(small_state: State) -> None:
    """mmdet 3.x unfolds, the official code concatenates four slices: each with its own file's weights."""
    prefix, mmdet3_state = "backbone.layers.0.downsample.", to_mmdet3(small_state)
    x = torch.randn(1, 10, 6, SMALL.embed_dim, generator=torch.Generator().manual_seed(0))

    def merge(pixels: Tensor, state: State, prefix: str) -> Tensor:
        norm_weight, norm_bias, weight = (state[prefix + k] for k in ("norm.weight", "norm.bias", "reduction.weight"))
        return nn.functional.layer_norm(pixels, pixels.shape[-1:], norm_weight, norm_bias) @ weight.T

    unfolded = nn.functional.unfold(x.permute(0, 3, 1, 2), 2, stride=2).transpose(1, 2).reshape(1, 5, 3, -1)
    as_mmdet3 = merge(unfolded, mmdet3_state, prefix.replace("layers", "stages"))
    slices = [x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]]
    as_official = merge(torch.cat(slices, dim=-1), small_state, prefix)
    torch.testing.assert_close(as_mmdet3, as_official, rtol=0, atol=1e-5)

    ours = PatchMerging(SMALL.embed_dim).requires_grad_(False)
    native = to_native(mmdet3_state, "mmdet3")
    start = "backbone.stages.1.downsample."
    ours.load_state_dict({k.removeprefix(start): v for k, v in native.items() if k.startswith(start)})
    merged = ours(x.flatten(1, 2), merged_tokens((10, 6), x.device)).unflatten(1, (5, 3))
    torch.testing.assert_close(merged, as_official, rtol=0, atol=1e-5)


RESNET = ("conv1.weight", "bn1.weight", "layer1.0.conv1.weight", "layer1.0.bn1.running_mean", "layer4.2.conv3.weight")

# name: (keys, layout or None where it is refused)
DETECTED: dict[str, tuple[list[str], str | None]] = {
    "official": (["backbone.layers.0.blocks.0.norm1.weight", "rpn_head.rpn_cls.weight"], "official"),
    "mmdet 3.x": (["backbone.stages.0.blocks.0.norm1.weight", "rpn_head.rpn_cls.weight"], "mmdet3"),
    "our own": (["backbone.stages.0.blocks.0.norm1.weight", "rpn.objectness.weight"], "native"),
    "microsoft's classifier": (["layers.0.blocks.0.norm1.weight", "layers.0.downsample.norm.weight"], "microsoft"),
    "timm's classifier": (["layers.0.blocks.0.norm1.weight", "layers.3.downsample.norm.weight"], "timm"),
    "ResNet detector": ([f"backbone.{key}" for key in RESNET], None),
    "ResNet classifier": (list(RESNET), None),
    "ViT": (["cls_token", "blocks.0.attn.qkv.weight", "patch_embed.proj.weight"], None),
    "nothing": ([], None),
}


@pytest.mark.parametrize(("keys", "layout"), DETECTED.values(), ids=DETECTED.keys())
def test_detect_layout(keys: list[str], layout: str | None) -> None:
    if layout is not None:
        assert detect_layout(keys) == layout
        return
    with pytest.raises(LayoutError, match="not the weights of a Cascade Mask R-CNN Swin") as error:
        detect_layout(keys)
    assert (sorted(keys)[0] if keys else "no tensors at all") in str(error.value)


# ------------------------------------------------------------------------------------------------------------ variants
VARIANTS = {
    "Swin-T": SWIN_T,
    "Swin-S": SWIN_S,
    "Swin-B": SWIN_B,
    "Swin-T, one class": replace(SWIN_T, num_classes=1),
    "golden": replace(GOLDEN_VARIANT, name="custom"),
    "small": SMALL,
    "other window": replace(SMALL, window_size=4, num_classes=3),
    "heads without convolutions": replace(SMALL, box_convs=0, mask_convs=0, box_channels=16, mask_channels=16),
    "many classes": replace(SMALL, num_classes=1203),
}


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
@pytest.mark.parametrize("layout", ["official", "mmdet3"])
def test_infer_variant(variant: CascadeVariant, layout: str) -> None:
    state = meta_state(variant)
    native = to_native(to_mmdet3(state) if layout == "mmdet3" else state, layout)
    assert infer_variant(native) == variant
    with torch.device("meta"):
        check_keys(CascadeMaskRCNN(variant).state_dict(), native)


def test_published_numbers_of_keys_and_parameters() -> None:
    assert len(meta_state(SWIN_B)) == 505
    with torch.device("meta"):
        count = sum(p.numel() for p in CascadeMaskRCNN(SWIN_B).parameters())
    assert round(count / 1e6, 2) == 144.98
    floats = [shape for name, shape in official_shapes(SWIN_B) if name.endswith((".weight", ".bias", "_table"))]
    assert sum(math.prod(shape) for shape in floats) == count


# -------------------------------------------------------------------------------------------------------------- errors
def without(*parts: str) -> Callable[[State], State]:
    return lambda state: {k: v for k, v in state.items() if not any(part in k for part in parts)}


def single_stage(state: State) -> State:
    """Mask R-CNN: one box head and one mask head, not numbered."""
    return {k.replace("_head.0.", "_head."): v for k, v in state.items() if not k.startswith(NUMBERED)}


NUMBERED = tuple(f"roi_head.{head}_head.{stage}." for head in ("bbox", "mask") for stage in (1, 2))

# name: (change, part of the message)
INCOMPLETE: dict[str, tuple[Callable[[State], State], str]] = {
    "Mask R-CNN": (single_stage, "lack 'box_heads.stages.0.fc.weight'"),
    "no mask heads": (without("mask_head"), "lack 'mask_heads.stages.0.upsample.weight'"),
    "no proposal network": (without("rpn_head"), "lack 'rpn.conv.weight'"),
    "a stage of the backbone is missing": (without("layers.2."), "lack 'backbone.stages.2.blocks.0."),
}


@pytest.mark.parametrize(("change", "message"), INCOMPLETE.values(), ids=INCOMPLETE.keys())
def test_parts_of_models(change: Callable[[State], State], message: str, small_state: State) -> None:
    with pytest.raises(LayoutError, match=message):
        infer_variant(to_native(change(small_state), "official"))


def test_sizes_that_make_no_model(small_state: State) -> None:
    native = to_native(small_state, "official")
    table = "backbone.stages.0.blocks.0.attn.relative_position_bias_table"
    with pytest.raises(LayoutError, match="16 channels, which do not split over 3 heads"):
        infer_variant(native | {table: torch.zeros(169, 3)})
