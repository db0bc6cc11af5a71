"""Stages that answer what a table says, so that every box and score can be computed by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.model.cascade_mask_rcnn import cascade
from pipeline.model.cascade_mask_rcnn.cascade import BoxDetections, BoxHead, CascadeBoxHeads, select_detections
from pipeline.model.cascade_mask_rcnn.roi import Slots
from pipeline.model.settings import TestSettings
from testing.small_model import SMALL

SIZE = (200.0, 300.0)  # H, W of the input
ROI = [100.0, 50.0, 140.0, 90.0]  # 40 x 40
LOOSE = TestSettings(score_threshold=0.0, nms_iou=1.0, max_detections=1000)
NO_DELTAS = [[0.0] * 4] * 2


class Scripted(nn.Module):
    """A stage with two classes and background that answers the same for every RoI, and remembers its boxes."""

    def __init__(self, logits: list[float], deltas: list[list[float]]) -> None:
        super().__init__()
        self.logits, self.deltas = torch.tensor(logits), torch.tensor(deltas)
        self.boxes = torch.zeros(0, 4)

    def forward(self, boxes: Tensor) -> tuple[Tensor, Tensor]:
        self.boxes = boxes
        return self.logits.expand(len(boxes), -1), self.deltas.expand(len(boxes), -1, -1)


class Found(NamedTuple):
    """What is in the filled slots of one image."""

    boxes_image: Tensor
    scores: Tensor
    labels: Tensor


def of_image(found: BoxDetections, image: int = 0) -> Found:
    """Empty slots are at the end, and zero."""
    count = int(found.valid[image].sum())
    fields = found.boxes_image, found.scores, found.labels
    assert found.valid[image, :count].all()
    assert not any(field[image, count:].any() for field in fields)
    return Found(*(field[image, :count] for field in fields))


Run = Callable[..., tuple[list[Found], list[Scripted]]]


@pytest.fixture(params=[False, True], ids=["padded", "compact"])
def run(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the cascade over scripted stages; "pooling" hands each stage its boxes."""

    def no_pooling(features: list[Tensor], boxes: Tensor, slots: Slots, side: int) -> Tensor:
        assert side == 7
        return boxes

    def call(
        *stages: tuple[list[float], list[list[float]]],
        proposals: list[list[list[float]]] | None = None,
        sizes: list[tuple[float, float]] | None = None,
        factors: list[tuple[float, float]] | None = None,
        settings: TestSettings = LOOSE,
    ) -> tuple[list[Found], list[Scripted]]:
        monkeypatch.setattr(cascade, "pool_slots", no_pooling)
        rows = [torch.tensor(p).reshape(-1, 4) for p in (proposals or [[ROI]])]
        boxes, valid = torch.zeros(len(rows), 3, 4), torch.zeros(len(rows), 3, dtype=torch.bool)
        for i, row in enumerate(rows):
            boxes[i, : len(row)], valid[i, : len(row)] = row, True
        slots = Slots(valid, request.param)
        heads, scripted = CascadeBoxHeads(SMALL), [Scripted(*stage) for stage in stages]
        heads.stages = nn.ModuleList(scripted)
        image_sizes = torch.tensor(sizes or [SIZE] * len(boxes))
        scale_factors = torch.tensor(factors or [(1.0, 1.0)] * len(boxes))
        last = heads([], boxes, slots, image_sizes)
        found = select_detections(*last, image_sizes, scale_factors, settings, every_candidate=False)
        for stage in scripted:
            stage.boxes = stage.boxes[slots.filled]
        return [of_image(found, i) for i in range(len(rows))], scripted

    return call


def softmax(logits: list[float]) -> list[float]:
    powers = [math.exp(v) for v in logits]
    return [p / sum(powers) for p in powers]


def test_score_is_softmax_of_mean_logits(run: Run) -> None:
    logits = [[4.0, 0.0, 1.0], [-2.0, 3.0, 0.0], [1.0, 0.0, 5.0]]
    (found,), _ = run(*((row, NO_DELTAS) for row in logits))
    expected = softmax([1.0, 1.0, 2.0])[:2]
    assert found.scores.tolist() == pytest.approx(expected, rel=1e-6)
    # Neither the mean of the stages' probabilities nor the last stage's are anywhere near.
    assert np.mean([softmax(row)[0] for row in logits]) > expected[0] + 0.1
    assert softmax(logits[-1])[0] < expected[0] - 0.1


def test_best_foreground_class_steers_refinement(run: Run) -> None:
    """Background wins both stages; class 1, then class 0 is the best of the rest."""
    shift_x, shift_y = [1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]
    first, second = ([0.0, 1.0, 9.0], [shift_x, shift_y]), ([1.0, 0.0, 9.0], [shift_x, shift_y])
    _, stages = run(first, second, ([0.0, 0.0, 0.0], NO_DELTAS))
    assert stages[0].boxes.tolist() == [ROI]
    # The first stage's deltas count tenths of a side, the second's twentieths.
    assert stages[1].boxes.tolist() == [[100, 54, 140, 94]]
    assert stages[2].boxes.tolist() == [[102, 54, 142, 94]]


def test_last_stage_decodes_every_class_from_its_own_boxes(run: Run) -> None:
    first = ([1.0, 0.0, 0.0], [[1.0, 0, 0, 0], [0.0] * 4])
    last = ([0.0, 1.0, 0.0], [[1.0, 0, 0, 0], [0, 0, math.log(2) / 0.067, 0]])
    (found,), _ = run(first, ([0.0, 0.0, 0.0], NO_DELTAS), last)
    boxes = dict(zip(found.labels.tolist(), found.boxes_image.tolist(), strict=True))
    assert boxes[0] == pytest.approx([104 + 40 * 0.033, 50, 144 + 40 * 0.033, 90])
    assert boxes[1] == pytest.approx([84, 50, 164, 90], abs=1e-4)


def test_boxes_are_clipped_after_every_stage(run: Run) -> None:
    """To the picture in the input, not to the padding: moved out and back again, a box stays cut."""
    out, back = [[9.0, 0, 0, 0]] * 2, [[-1.0, 0, 0, 0]] * 2
    answer = [0.0, 0.0, 0.0]
    (found,), stages = run((answer, out), (answer, back), (answer, NO_DELTAS), sizes=[(80.0, 150.0)])
    assert stages[1].boxes.tolist() == [[136, 50, 150, 80]]
    assert stages[2].boxes[0].tolist() == pytest.approx([135.3, 50, 149.3, 80])
    assert found.boxes_image[:, 3].tolist() == [80, 80]


def test_each_axis_has_its_own_scale_factor(run: Run) -> None:
    stage = ([2.0, 0.0, 0.0], NO_DELTAS)
    (found,), _ = run(stage, stage, stage, factors=[(2.0, 0.5)])
    assert found.boxes_image[0].tolist() == [50, 100, 70, 180]


def test_images_of_a_batch_keep_their_own(run: Run) -> None:
    stage = ([1.0, 0.0, 0.0], NO_DELTAS)
    proposals = [[ROI, [0.0, 0, 10, 10]], [], [[20.0, 20, 80, 60]]]
    found, _ = run(stage, stage, stage, proposals=proposals, sizes=[SIZE, SIZE, (50.0, 70.0)])
    assert [sorted(f.boxes_image[f.labels == 0].tolist()) for f in found] == [
        [[0, 0, 10, 10], ROI],
        [],
        [[20, 20, 70, 50]],
    ]


def test_no_proposals_at_all(run: Run) -> None:
    stage = ([1.0, 0.0, 0.0], NO_DELTAS)
    found, _ = run(stage, stage, stage, proposals=[[], []])
    assert [(f.boxes_image.shape, f.scores.shape, f.labels.shape) for f in found] == [((0, 4), (0,), (0,))] * 2


# ----------------------------------------------------------------------------------------------------------- selection
NEARBY = [[0.0, 0, 100, 100], [0.0, 0, 100, 90], [200.0, 0, 250, 50]]  # IoU of the first two: 0.9

# name: (scores per RoI, settings, expected (roi, label) best first)
SELECTED = {
    "one RoI, several classes": ([[0.6, 0.3], [0, 0], [0, 0]], {}, [(0, 0), (0, 1)]),
    "same class suppresses": ([[0.6, 0], [0.5, 0], [0, 0]], {}, [(0, 0)]),
    "another class does not": ([[0.6, 0], [0, 0.5], [0, 0]], {}, [(0, 0), (1, 1)]),
    "the better one stays": ([[0.5, 0], [0.6, 0], [0, 0]], {}, [(1, 0)]),
    "IoU below the threshold": ([[0.6, 0], [0.5, 0], [0, 0]], {"nms_iou": 0.95}, [(0, 0), (1, 0)]),
    "score at the threshold goes": ([[0.25, 0], [0, 0.25001], [0, 0]], {"score_threshold": 0.25}, [(1, 1)]),
    "default threshold": ([[0.05, 0.0501], [0.0499, 0], [0, 0]], {"score_threshold": 0.05}, [(0, 1)]),
    "best first": ([[0.2, 0], [0, 0.3], [0.4, 0]], {}, [(2, 0), (1, 1), (0, 0)]),
    "no more than asked for": ([[0.2, 0], [0, 0.3], [0.4, 0]], {"max_detections": 2}, [(2, 0), (1, 1)]),
    "nothing": ([[0, 0], [0.1, 0], [0, 0]], {"score_threshold": 0.5}, []),
}


def select(scores: list[list[float]], settings: TestSettings, every_candidate: bool) -> Found:
    inputs = torch.tensor(NEARBY), torch.zeros(3, 2, 4), torch.tensor(scores).float(), torch.full((2,), 1000.0)
    found = select_detections(*(x[None] for x in inputs), torch.ones(1, 2), settings, every_candidate)
    assert found.scores.shape == (1, settings.max_detections)
    assert found.final.tolist() == [True]
    return of_image(found)


@pytest.mark.parametrize("every_candidate", [False, True])
@pytest.mark.parametrize(("scores", "changes", "expected"), SELECTED.values(), ids=SELECTED.keys())
def test_select_detections(
    scores: list[list[float]], changes: dict[str, float], expected: list, every_candidate: bool
) -> None:
    settings = TestSettings(**{"score_threshold": 0.1, **changes})
    found = select(scores, settings, every_candidate)
    kept = [NEARBY.index(box) for box in found.boxes_image.tolist()]
    assert list(zip(kept, found.labels.tolist(), strict=True)) == expected
    assert found.scores.tolist() == pytest.approx([scores[r][c] for r, c in expected])


# ------------------------------------------------------------------------------------------------------------ one head
def test_box_head_by_hand() -> None:
    """Convolutions with norms, features flattened channel by channel, background last, deltas class by class."""
    torch.manual_seed(0)
    head = BoxHead(SMALL).eval().requires_grad_(False)
    for name, buffer in head.named_buffers():
        if buffer.is_floating_point():
            buffer.copy_(torch.rand_like(buffer) * (1e-3 if "var" in name else 1))
    pooled = torch.randn(4, SMALL.fpn_channels, 7, 7)
    x = pooled.double()
    for block in head.convs:
        norm = block.norm
        x = F.conv2d(x, block.conv.weight.double(), padding=1)
        x = (x - norm.running_mean[:, None, None]) / (norm.running_var[:, None, None].double() + 1e-5).sqrt()
        x = (x * norm.weight[:, None, None] + norm.bias[:, None, None]).clamp(min=0)
    rows = torch.stack([torch.cat([channel.reshape(-1) for channel in roi]) for roi in x])
    hidden = F.linear(rows, head.fc.weight.double(), head.fc.bias.double()).clamp(min=0)
    logits, deltas = head(pooled)
    assert logits.shape == (4, SMALL.num_classes + 1)
    expected = F.linear(hidden, head.classify.weight.double(), head.classify.bias.double())
    torch.testing.assert_close(logits.double(), expected, rtol=1e-4, atol=1e-3)
    flat = F.linear(hidden, head.regress.weight.double(), head.regress.bias.double())
    for label in range(SMALL.num_classes):
        expected = flat[:, 4 * label : 4 * label + 4]
        torch.testing.assert_close(deltas[:, label].double(), expected, rtol=1e-4, atol=1e-3)
