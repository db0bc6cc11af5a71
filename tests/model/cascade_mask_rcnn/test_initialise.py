from __future__ import annotations

import pytest
import torch

from pipeline.model.cascade_mask_rcnn.detector import CascadeMaskRCNN
from pipeline.model.cascade_mask_rcnn.network import initialise, initialise_class_layers
from pipeline.model.cascade_mask_rcnn.variants import CascadeVariant
from tests.train.loop_cases import TINY

WIDE = CascadeVariant("wide", 32, (1, 1, 1, 1), (1, 1, 2, 2), num_classes=40, fpn_channels=64, box_fc=128)


@pytest.fixture(scope="module")
def detector() -> CascadeMaskRCNN:
    detector = CascadeMaskRCNN(WIDE)
    initialise(detector, 0)
    return detector


@pytest.mark.parametrize(
    ("name", "std"),
    [
        ("backbone.stages.3.blocks.0.mlp.fc1.weight", 0.02),
        ("backbone.stages.3.blocks.0.attn.relative_position_bias_table", 0.02),
        ("rpn.conv.weight", 0.01),
        ("rpn.deltas.weight", 0.01),
        ("box_heads.stages.1.classify.weight", 0.01),
        ("box_heads.stages.1.regress.weight", 0.001),
        ("neck.outputs.0.weight", (2 / (2 * 64 * 9)) ** 0.5),  # Xavier
        ("mask_heads.stages.0.convs.1.conv.weight", (2 / (256 * 9)) ** 0.5),  # Kaiming by fan-out
        ("mask_heads.stages.2.predict.weight", (2 / 40) ** 0.5),
    ],
)
def test_spread(detector: CascadeMaskRCNN, name: str, std: float) -> None:
    assert float(dict(detector.named_parameters())[name].detach().std()) == pytest.approx(std, rel=0.05)


def test_biases_are_zero_and_norms_one(detector: CascadeMaskRCNN) -> None:
    for name, parameter in detector.named_parameters():
        if name.endswith(".bias") and "patch_embed.proj" not in name:
            assert not parameter.any(), name
        elif "norm" in name and name.endswith("weight"):
            assert (parameter == 1).all(), name


def test_the_seed_decides_and_the_global_state_stays() -> None:
    detectors = [CascadeMaskRCNN(TINY) for _ in range(3)]
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    for detector, seed in zip(detectors, (4, 4, 5), strict=True):
        initialise(detector, seed)
    assert torch.equal(torch.random.get_rng_state(), before)
    weights = [detector.state_dict() for detector in detectors]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    random = [n for n in weights[0] if n.endswith("weight") and "norm" not in n] + ["backbone.patch_embed.proj.bias"]
    assert not [name for name in random if torch.equal(weights[0][name], weights[2][name])]


def test_class_layers_are_those_whose_shape_depends_on_the_classes() -> None:
    names = initialise_class_layers(CascadeMaskRCNN(TINY))
    other = CascadeMaskRCNN(CascadeVariant(**{**vars(TINY), "num_classes": 7})).state_dict()
    own = CascadeMaskRCNN(TINY).state_dict()
    assert sorted(names) == sorted(name for name in own if own[name].shape != other[name].shape)
