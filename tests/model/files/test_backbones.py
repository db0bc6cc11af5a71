"""ImageNet classifiers as they are published, made by timm: the backbone must compute what the classifier does."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.model.cascade_mask_rcnn.swin import SwinBackbone
from pipeline.model.cascade_mask_rcnn.variants import CascadeVariant
from pipeline.model.files.backbones import convert_backbone, load_backbone, read_backbone
from pipeline.model.files.checkpoints import CheckpointError, load_checkpoint, weights_digest
from tests.model.cascade_mask_rcnn.test_swin import lively, random_map

State = dict[str, Tensor]
SIZES = CascadeVariant("custom", embed_dim=8, depths=(2, 1, 2, 1), num_heads=(1, 2, 4, 8))


@pytest.fixture(scope="module")
def classifier() -> nn.Module:
    model = timm.create_model(
        "swin_tiny_patch4_window7_224",
        embed_dim=SIZES.embed_dim,
        depths=SIZES.depths,
        num_heads=SIZES.num_heads,
        num_classes=10,
        strict_img_size=False,
        always_partition=True,
    )
    return lively(model)


def save_timm(state: State, folder: Path) -> Path:
    save_file(state, folder / "model.safetensors")
    return folder / "model.safetensors"


def save_timm_bin(state: State, folder: Path) -> Path:
    torch.save(state, folder / "pytorch_model.bin")
    return folder / "pytorch_model.bin"


def save_microsoft(state: State, folder: Path) -> Path:
    """Merging belongs to the stage before it, the head is one layer, and derived buffers are in the file."""
    named: State = {}
    for key, value in state.items():
        key = re.sub(r"^layers\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", key)
        named[key.replace("head.fc.", "head.")] = value
    for key in list(named):
        if key.endswith("relative_position_bias_table"):
            block = key.removesuffix("attn.relative_position_bias_table")
            named[block + "attn.relative_position_index"] = torch.zeros(49, 49, dtype=torch.int64)
            named[block + "attn_mask"] = torch.zeros(64, 49, 49)
    torch.save({"model": named}, folder / "swin.pth")
    return folder / "swin.pth"


def save_own(state: State, folder: Path) -> Path:
    convert_backbone(save_microsoft(state, folder), folder / "own.safetensors")
    return folder / "own.safetensors"


SAVERS = {"timm": save_timm, "timm, torch file": save_timm_bin, "microsoft": save_microsoft, "our own": save_own}
Save = Callable[[State, Path], Path]


@pytest.mark.parametrize("save", SAVERS.values(), ids=SAVERS.keys())
def test_backbone_computes_what_the_classifier_does(save: Save, classifier: nn.Module, tmp_path: Path) -> None:
    """At a size where both treat windows alike: every map in whole windows."""
    backbone = SwinBackbone(SIZES).eval().requires_grad_(False)
    load_backbone(save(classifier.state_dict(), tmp_path), backbone)
    expected: list[Tensor] = []
    hooks = [stage.register_forward_hook(lambda _, __, output: expected.append(output)) for stage in classifier.layers]
    images = random_map(1, 3, 224, 448)
    with torch.no_grad():
        classifier.forward_features(images)
    for hook in hooks:
        hook.remove()
    for ours, theirs in zip(backbone(images, backbone.windows((224, 448))), expected, strict=True):
        # Output norms are new in a detector: they start as plain normalisation.
        normed = F.layer_norm(theirs, theirs.shape[-1:]).permute(0, 3, 1, 2)
        torch.testing.assert_close(ours, normed, rtol=0, atol=2e-5)


def test_every_file_gives_the_same_weights(classifier: nn.Module, tmp_path: Path) -> None:
    found = [read_backbone(save(classifier.state_dict(), tmp_path)) for save in SAVERS.values()]
    assert len({backbone.weights_sha256 for backbone in found}) == 1
    for backbone in found:
        assert not any(name.startswith("backbone.norms.") for name in backbone.weights)
        for size in ("embed_dim", "depths", "num_heads", "window_size"):
            assert getattr(backbone.variant, size) == getattr(SIZES, size)
    assert [backbone.source["layout"] for backbone in found] == ["timm", "timm", "microsoft", "microsoft"]


def test_output_norms_keep_their_values(classifier: nn.Module, tmp_path: Path) -> None:
    backbone = SwinBackbone(SIZES)
    with torch.no_grad():
        backbone.norms[2].weight.fill_(3)
    load_backbone(save_timm(classifier.state_dict(), tmp_path), backbone)
    assert (backbone.norms[2].weight == 3).all()


def test_wrong_size_lists_what_does_not_fit(classifier: nn.Module, tmp_path: Path) -> None:
    path = save_timm(classifier.state_dict(), tmp_path)
    deeper = SwinBackbone(CascadeVariant("custom", embed_dim=8, depths=(2, 2, 2, 1), num_heads=(1, 2, 4, 8)))
    with pytest.raises(CheckpointError, match=r"missing \(13\):\n  stages\.1\.blocks\.1\.attn\.proj\.bias") as error:
        load_backbone(path, deeper)
    assert str(error.value).startswith(str(path))


def test_a_part_of_a_backbone_is_refused(classifier: nn.Module, tmp_path: Path) -> None:
    state = {k: v for k, v in classifier.state_dict().items() if k != "layers.2.blocks.1.mlp.fc1.bias"}
    with pytest.raises(CheckpointError, match=r"missing \(1\):\n  backbone\.stages\.2\.blocks\.1\.mlp\.fc1\.bias"):
        read_backbone(save_timm(state, tmp_path))


def test_a_detector_is_no_backbone(small_state: State, tmp_path: Path) -> None:
    torch.save({"state_dict": small_state}, tmp_path / "detector.pth")
    with pytest.raises(CheckpointError, match="detector in the official layout, not an ImageNet backbone"):
        load_backbone(tmp_path / "detector.pth", SwinBackbone(SIZES))


@pytest.mark.parametrize("save", SAVERS.values(), ids=SAVERS.keys())
def test_a_backbone_is_no_detector(save: Save, classifier: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="ImageNet backbone without a detector"):
        load_checkpoint(save(classifier.state_dict(), tmp_path))


def test_our_own_file_of_half_precision_becomes_float32(classifier: nn.Module, tmp_path: Path) -> None:
    found = read_backbone(save_own(classifier.state_dict(), tmp_path))
    half = {name: tensor.half() for name, tensor in found.weights.items()}
    with safe_open(tmp_path / "own.safetensors", framework="pt") as file:
        header = file.metadata() | {"weights_sha256": weights_digest(half)}
    save_file(half, tmp_path / "half.safetensors", metadata=header)
    again = read_backbone(tmp_path / "half.safetensors")
    assert all(torch.equal(again.weights[name], tensor.float()) for name, tensor in half.items())
    assert {tensor.dtype for tensor in again.weights.values()} == {torch.float32}
    assert again.weights_sha256 == weights_digest(again.weights)


def test_tampered_weights_are_refused(classifier: nn.Module, tmp_path: Path) -> None:
    path = save_own(classifier.state_dict(), tmp_path)
    data = bytearray(path.read_bytes())
    data[-1000] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="the weights are not those the file was written with"):
        read_backbone(path)
