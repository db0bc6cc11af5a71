"""Oracles: anchors by hand, and the whole proposal step as loops over positions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.model.cascade_mask_rcnn.rpn import Proposals, RegionProposalNetwork, anchors, level_anchors
from pipeline.model.settings import TestSettings
from tests.model.cascade_mask_rcnn.test_boxes import nms_by_loops
from tests.model.compare import Found, match

CPU = torch.device("cpu")
STRIDES = (4, 8, 16, 32, 64)
ROOT = math.sqrt(2)


# name: (stride, row, column, ratio index, expected); the map is 3 high and 5 wide
ANCHORS = {
    "square, first position": (4, 0, 0, 1, (-16, -16, 16, 16)),
    "wide, first position": (4, 0, 0, 0, (-16 * ROOT, -8 * ROOT, 16 * ROOT, 8 * ROOT)),
    "high, first position": (4, 0, 0, 2, (-8 * ROOT, -16 * ROOT, 8 * ROOT, 16 * ROOT)),
    "next column": (4, 0, 1, 1, (-12, -16, 20, 16)),
    "next row": (4, 1, 0, 1, (-16, -12, 16, 20)),
    "last": (64, 2, 4, 2, (256 - 128 * ROOT, 128 - 256 * ROOT, 256 + 128 * ROOT, 128 + 256 * ROOT)),
}


@pytest.mark.parametrize(("stride", "row", "column", "ratio", "expected"), ANCHORS.values(), ids=ANCHORS.keys())
def test_anchors_by_hand(stride: int, row: int, column: int, ratio: int, expected: tuple[float, ...]) -> None:
    boxes = anchors(3, 5, stride, CPU)
    assert boxes.shape == (3 * 5 * 3, 4)
    assert boxes.dtype == torch.float32
    torch.testing.assert_close(boxes[(row * 5 + column) * 3 + ratio], torch.tensor(expected).float(), rtol=1e-6, atol=0)


def test_anchors_are_not_rounded() -> None:
    width = anchors(1, 1, 4, CPU)[0, 2] * 2
    assert width.item() == pytest.approx(45.254834, abs=1e-5)


# ----------------------------------------------------------------------------------------------------------- proposals
def network(channels: int = 6, delta_scale: float = 0.3) -> RegionProposalNetwork:
    torch.manual_seed(0)
    rpn = RegionProposalNetwork(channels).eval().requires_grad_(False)
    for part, scale in ((rpn.conv, 0.3), (rpn.objectness, 0.5), (rpn.deltas, delta_scale)):
        part.weight.normal_(0, scale)
        part.bias.normal_(0, scale)
    return rpn


def pyramid(batch: int = 1, height: int = 96, width: int = 160, channels: int = 6) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    sizes = [(math.ceil(height / s), math.ceil(width / s)) for s in STRIDES]
    return [torch.randn(batch, channels, *size, generator=generator) for size in sizes]


def run(
    rpn: RegionProposalNetwork, features: list[Tensor], sizes: list[tuple[float, float]], settings: TestSettings
) -> Proposals:
    grids = level_anchors((features[0].shape[2] * 4, features[0].shape[3] * 4), CPU)
    return rpn(features, grids, torch.tensor(sizes), settings)


def of_image(found: Proposals, image: int = 0) -> tuple[Tensor, Tensor]:
    """Boxes and scores of one image; empty slots are at the end, and zero."""
    count = int(found.valid[image].sum())
    assert found.valid[image].tolist() == [True] * count + [False] * (found.valid.shape[1] - count)
    assert not found.boxes[image, count:].any()
    assert not found.scores[image, count:].any()
    return found.boxes[image, :count], found.scores[image, :count]


def by_loops(
    rpn: RegionProposalNetwork, features: list[Tensor], size: tuple[float, float], settings: TestSettings
) -> tuple[np.ndarray, np.ndarray]:
    """Proposals of the first image: decoded, sorted and clipped one by one in float64, NMS level by level."""
    rows: list[tuple[float, int, list[float]]] = []
    for level, (stride, feature) in enumerate(zip(STRIDES, features, strict=True)):
        x = F.relu(F.conv2d(feature[:1], rpn.conv.weight, rpn.conv.bias, padding=1))
        logits = F.conv2d(x, rpn.objectness.weight, rpn.objectness.bias)[0].double().numpy()
        deltas = F.conv2d(x, rpn.deltas.weight, rpn.deltas.bias)[0].double().numpy()
        found = []
        for row, column, ratio in np.ndindex(*feature.shape[-2:], 3):
            width = 8 * stride / math.sqrt((0.5, 1, 2)[ratio])
            height = 8 * stride * math.sqrt((0.5, 1, 2)[ratio])
            dx, dy, dw, dh = deltas[4 * ratio : 4 * ratio + 4, row, column]
            x_centre, y_centre = column * stride + dx * width, row * stride + dy * height
            limit = math.log(1000 / 16)
            width *= math.exp(min(max(dw, -limit), limit))
            height *= math.exp(min(max(dh, -limit), limit))
            low = x_centre - width / 2, y_centre - height / 2
            high = x_centre + width / 2, y_centre + height / 2
            box = [min(max(v, 0), size[1 - i % 2]) for i, v in enumerate((*low, *high))]
            found.append((1 / (1 + math.exp(-logits[ratio, row, column])), level, box))
        rows += sorted(found, key=lambda entry: -entry[0])[: settings.proposals_per_level]
    scores, levels, boxes = (np.array(column) for column in zip(*rows, strict=True))
    kept = nms_by_loops(boxes.astype(np.float32), scores, levels, settings.rpn_nms_iou)[: settings.proposals]
    return boxes[kept], scores[kept]


PROPOSALS = {
    "few of each level": TestSettings(proposals_per_level=40, proposals=1000),
    "coarse levels have fewer than asked for": TestSettings(proposals_per_level=150, proposals=1000),
    "few in all": TestSettings(proposals_per_level=80, proposals=30),
    "strict NMS": TestSettings(proposals_per_level=100, proposals=1000, rpn_nms_iou=0.3),
}


@pytest.mark.parametrize("settings", PROPOSALS.values(), ids=PROPOSALS.keys())
def test_proposals_equal_loops(settings: TestSettings) -> None:
    rpn, features, size = network(), pyramid(), (90.0, 141.0)  # smaller than the padded 96 x 160
    boxes, scores = of_image(run(rpn, features, [size], settings))
    expected_boxes, expected_scores = by_loops(rpn, features, size, settings)
    np.testing.assert_allclose(scores.numpy(), expected_scores, atol=1e-5)
    # Two scores may be equal but for the last digit: neighbours in the order may change places.
    ours, expected = (
        Found(b, s, np.zeros(len(s), int)) for b, s in ((boxes, scores), (expected_boxes, expected_scores))
    )
    assert len(match(expected, ours, min_iou=0.999, max_score=1e-5)) == len(boxes) == len(expected_boxes)
    assert boxes[:, 2].max() <= 141
    assert boxes[:, 3].max() <= 90


def test_levels_do_not_suppress_each_other() -> None:
    """Every anchor becomes the whole image: one survives on each level."""
    rpn = network()
    rpn.deltas.weight.zero_()
    rpn.deltas.bias.copy_(torch.tensor([0.0, 0, 9, 9] * 3))
    boxes, _ = of_image(run(rpn, pyramid(), [(20.0, 20.0)], TestSettings()))
    assert boxes.tolist() == [[0, 0, 20, 20]] * 5


def test_proposals_without_area_are_kept() -> None:
    """Everything is moved beyond the right edge: clipped to zero width, yet it keeps its place."""
    rpn = network()
    rpn.deltas.weight.zero_()
    rpn.deltas.bias.copy_(torch.tensor([100.0, 0, 0, 0] * 3))
    settings = TestSettings(proposals_per_level=20, proposals=1000)
    boxes, scores = of_image(run(rpn, pyramid(), [(96.0, 160.0)], settings))
    per_level = [min(20, 3 * math.ceil(96 / s) * math.ceil(160 / s)) for s in STRIDES]
    assert len(boxes) == len(scores) == sum(per_level)
    assert (boxes[:, 0] == 160).all()
    assert (boxes[:, 2] == 160).all()


def test_a_batch_equals_its_images_one_by_one() -> None:
    rpn, features = network(), pyramid(batch=2)
    sizes, settings = [(96.0, 160.0), (70.0, 111.0)], TestSettings(proposals_per_level=60)
    together = run(rpn, features, sizes, settings)
    for i in range(2):
        boxes, scores = of_image(together, i)
        alone_boxes, alone_scores = of_image(run(rpn, [f[i : i + 1] for f in features], sizes[i : i + 1], settings))
        torch.testing.assert_close(boxes, alone_boxes, rtol=0, atol=1e-3)
        torch.testing.assert_close(scores, alone_scores, rtol=0, atol=1e-5)
