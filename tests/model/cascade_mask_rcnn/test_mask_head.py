"""Oracle: all classes' masks at once, as the reference computes them, then the wanted one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.model.cascade_mask_rcnn.mask_head import CascadeMaskHeads, MaskHead
from pipeline.model.cascade_mask_rcnn.roi import Slots, pool_rois
from testing.small_model import SMALL

# Two images, the second with an empty slot in between: all are compared as they lie end to end.
BOXES = torch.tensor(
    [[[8.0, 8, 60, 44], [100, 20, 101, 90], [0, 0, 0, 0]], [[0, 0, 128, 96], [0, 0, 0, 0], [30, 30, 30, 30]]]
)
LABELS = torch.tensor([[0, 2, 0], [4, 0, 2]])
VALID = torch.tensor([[True, True, False], [True, False, True]])
IMAGES = torch.tensor([0, 0, 1, 1])


def lively(module: torch.nn.Module) -> None:
    torch.manual_seed(0)
    module.eval().requires_grad_(False)
    for parameter in module.parameters():
        parameter.normal_(0, 0.3)


def pyramid() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, SMALL.fpn_channels, 96 // s, 128 // s, generator=generator) for s in (4, 8, 16, 32)]


def all_classes(head: MaskHead, pooled: Tensor) -> Tensor:
    """(R, C, 14, 14) -> logits of every class ``(R, K, 28, 28)``, layer by layer."""
    x = pooled
    for block in head.convs:
        x = F.relu(F.conv2d(x, block.conv.weight, block.conv.bias, padding=1))
    doubled = torch.zeros(len(x), SMALL.mask_channels, 28, 28)
    for row in (0, 1):
        for column in (0, 1):
            tap = torch.einsum("rihw,io->rohw", x, head.upsample.weight[:, :, row, column])
            doubled[:, :, row::2, column::2] = tap + head.upsample.bias[:, None, None]
    return F.conv2d(doubled.relu(), head.predict.weight, head.predict.bias)


def test_own_class_equals_that_of_all_classes() -> None:
    head = MaskHead(SMALL)
    lively(head)
    pooled = torch.randn(4, SMALL.fpn_channels, 14, 14)
    labels = LABELS[VALID]
    logits = head(pooled, labels)
    assert logits.shape == (4, 28, 28)
    every = all_classes(head, pooled)
    expected = torch.stack([every[i, label] for i, label in enumerate(labels)])
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("compact", [False, True])
def test_mean_of_probabilities(compact: bool) -> None:
    heads, features = CascadeMaskHeads(SMALL), pyramid()
    lively(heads)
    pooled = pool_rois(features, BOXES[VALID], IMAGES, 14)
    logits = [all_classes(stage, pooled)[torch.arange(4), LABELS[VALID]] for stage in heads.stages]
    expected = sum(1 / (1 + torch.exp(-x.double())) for x in logits) / 3
    padded = heads(features, BOXES, LABELS, Slots(VALID, compact))
    assert padded.shape == (2, 3, 28, 28)
    assert not padded[~VALID].any()
    found = padded[VALID]
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)
    # The mean of the logits is something else, so is one stage alone.
    assert (sum(logits).div(3).sigmoid() - found).abs().max() > 0.05
    assert (logits[-1].sigmoid() - found).abs().max() > 0.05


@pytest.mark.parametrize("compact", [False, True])
def test_no_boxes(compact: bool) -> None:
    slots = Slots(torch.zeros_like(VALID), compact)
    found = CascadeMaskHeads(SMALL).eval()(pyramid(), torch.zeros_like(BOXES), torch.zeros_like(LABELS), slots)
    assert found.shape == (2, 3, 28, 28)
    assert found.dtype == torch.float32
    assert not found.any()
