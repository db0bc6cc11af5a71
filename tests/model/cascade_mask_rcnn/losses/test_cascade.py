"""Heads that answer from a table: each part of each stage by hand, and where its gradient goes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.model.cascade_mask_rcnn.losses import cascade
from pipeline.model.cascade_mask_rcnn.losses.assign import ImageTargets
from pipeline.model.cascade_mask_rcnn.losses.cascade import cascade_losses
from pipeline.model.settings import PUBLISHED_SAMPLING
from tests.model.cascade_mask_rcnn.losses.loss_cases import TWO, boxes_of, objects, seeded

K = 2
SIZES = torch.tensor([[64.0, 64.0]])
LOGITS = [1.0, 0.0, 0.5]
FAR = (50.0, 0.0, 60.0, 10.0)
NEAR = (6.0, 8.0, 30.0, 30.0)  # 22 / 32 of the first of TWO: positive in the first two stages only


class BoxTable(nn.Module):
    """Shifts class 0 by ``shift`` deltas to the right and leaves class 1 alone; "pooled" are the RoIs."""

    num_classes = K

    def __init__(self, shift: float) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(LOGITS))
        self.deltas = nn.Parameter(torch.tensor([[shift, 0, 0, 0], [0.0] * 4]))
        self.boxes = torch.zeros(0)

    def forward(self, boxes: Tensor) -> tuple[Tensor, Tensor]:
        self.boxes = boxes
        return self.logits.expand(len(boxes), -1), self.deltas.expand(len(boxes), -1, -1)


class MaskTable(nn.Module):
    """One logit per class, alike for all pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([2.0, -1.0]))
        self.boxes = torch.zeros(0)

    def forward(self, boxes: Tensor, labels: Tensor) -> Tensor:
        self.boxes = boxes
        return self.logits[labels][:, None, None].expand(-1, 28, 28)


class Heads(nn.Module):
    def __init__(self, *stages: nn.Module) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)


Run = tuple[dict[str, Tensor], Heads, Heads]


@pytest.fixture(autouse=True)
def no_pooling(monkeypatch: pytest.MonkeyPatch) -> None:
    def boxes_themselves(features: list[Tensor], boxes: Tensor, image_index: Tensor, side: int) -> Tensor:
        return boxes

    monkeypatch.setattr(cascade, "pool_rois", boxes_themselves)


def run(proposals: list[tuple[float, ...]], image: ImageTargets, shift: float = 0.0) -> Run:
    box, mask = Heads(*(BoxTable(shift) for _ in range(3))), Heads(*(MaskTable() for _ in range(3)))
    losses = cascade_losses(
        box, mask, [], [boxes_of(*proposals)], SIZES, [image], [seeded()], PUBLISHED_SAMPLING.roi_quota
    )  # type: ignore[arg-type]
    return losses, box, mask


def cross_entropy(label: int) -> float:
    return math.log(sum(math.exp(x) for x in LOGITS)) - LOGITS[label]


def test_class_loss_and_stage_weights() -> None:
    """RoIs: the object, a positive of the first two stages, background."""
    losses, _, _ = run([NEAR, FAR], objects(TWO[0]))
    for stage, (weight, positives) in enumerate(((1, 2), (0.5, 2), (0.25, 1)), start=1):
        expected = (positives * cross_entropy(0) + (3 - positives) * cross_entropy(K)) / 3
        assert losses[f"stage{stage}_class"].item() == pytest.approx(weight * expected, rel=1e-5)


def test_box_loss_on_decoded_boxes() -> None:
    """The object's own box moves by 2 of its 24 pixels in each stage, by deltas that count less and less."""
    boxes, masks = (
        Heads(*(BoxTable(2 / 24 / unit) for unit in (0.1, 0.05, 0.033))),
        Heads(*(MaskTable() for _ in "123")),
    )
    losses = cascade_losses(  # type: ignore[arg-type]
        boxes, masks, [], [boxes_of(FAR)], SIZES, [objects(TWO[0])], [seeded()], PUBLISHED_SAMPLING.roi_quota
    )
    # IoU 22 / 26, and the hull is the union: divided by the 2 RoIs of each stage, times 10.
    for stage, weight in enumerate((1, 0.5, 0.25), start=1):
        assert losses[f"stage{stage}_box"].item() == pytest.approx(weight * 10 * (1 - 22 / 26) / 2, rel=1e-4)


def test_boxes_are_not_clipped_for_the_loss() -> None:
    """Moved beyond the border the box is compared as it is: 12 of its 24 pixels overlap, of 36 in all."""
    losses, _, _ = run([FAR], objects((40.0, 8.0, 64.0, 40.0)), shift=5.0)
    assert losses["stage1_box"].item() == pytest.approx(10 * (1 - 12 / 36) / 2, rel=1e-4)


def test_mask_loss() -> None:
    """Masks fill the objects' own boxes, and 3/4 of the width of a proposal that reaches beyond its object."""
    wide = (34.0, 30.0, 66.0, 60.0)  # 28 of 32 pixels are the object's
    losses, _, masks = run([wide, FAR], objects(*TWO))
    ones = [math.log1p(math.exp(-x)) for x in (2.0, -1.0)]
    zero = math.log1p(math.exp(-1.0))  # of class 1
    expected = (ones[0] + ones[1] + (28 / 32) * ones[1] + (4 / 32) * zero) / 3
    assert losses["stage1_mask"].item() == pytest.approx(expected, abs=0.01)
    assert masks.stages[0].boxes.tolist() == [list(row) for row in (*TWO, wide)]


def test_masks_of_own_class_only() -> None:
    losses, _, masks = run([FAR], objects(TWO[0]))
    losses["stage1_mask"].backward()
    gradient = masks.stages[0].logits.grad
    expected = torch.sigmoid(torch.tensor(2.0)).item() - 1
    assert gradient.tolist() == pytest.approx([expected, 0])


def test_a_stage_learns_from_what_the_one_before_refined() -> None:
    """Without the objects' own boxes, which join anew and unmoved; every stage gets the sampled RoIs only."""
    _, boxes, _ = run([NEAR, FAR], objects(TWO[0]), shift=1.0)
    # Class 0 moves all; a tenth of a side, then a twentieth, clipped at 64.
    assert boxes.stages[0].boxes.tolist() == [list(row) for row in (TWO[0], NEAR, FAR)]
    torch.testing.assert_close(boxes.stages[1].boxes, boxes_of(TWO[0], (8.4, 8, 32.4, 30), (51, 0, 61, 10)))
    torch.testing.assert_close(boxes.stages[2].boxes, boxes_of(TWO[0], (9.6, 8, 33.6, 30), (51.5, 0, 61.5, 10)))


def test_losses_of_a_stage_do_not_reach_the_one_before() -> None:
    losses, boxes, _ = run([NEAR, FAR], objects(TWO[0]), shift=1.0)
    (losses["stage2_class"] + losses["stage2_box"]).backward()
    assert boxes.stages[0].deltas.grad is None
    assert boxes.stages[1].deltas.grad[0].any()
    assert not boxes.stages[1].deltas.grad[1].any()


EMPTY: dict[str, tuple[list[tuple[float, ...]], ImageTargets]] = {
    "no objects": ([NEAR, FAR], objects()),
    "no positive beside the object": ([FAR], objects(TWO[0])),
    "all ignored": ([NEAR, FAR], objects(ignored=((0.0, 0.0, 64.0, 64.0),))),
    "no proposals": ([], objects()),
    "smaller than a pixel": ([FAR], objects((5.2, 5.2, 5.3, 5.4))),
    "no area": ([FAR], objects((5.0, 5.0, 5.0, 5.0))),
}


@pytest.mark.parametrize(("proposals", "image"), EMPTY.values(), ids=EMPTY.keys())
def test_every_parameter_has_a_finite_gradient(proposals: list[tuple[float, ...]], image: ImageTargets) -> None:
    losses, boxes, masks = run(proposals, image)
    assert len(losses) == 9
    torch.stack(list(losses.values())).sum().backward()
    gradients = [p.grad for heads in (boxes, masks) for p in heads.parameters()]
    assert all(g is not None and g.isfinite().all() for g in gradients)
    if len(image.boxes) == 0:
        assert all(losses[f"stage{s}_{name}"] == 0 for s in (1, 2, 3) for name in ("box", "mask"))
    if len(image.ignored_boxes):
        assert not any(g.any() for g in gradients if g is not None)


def test_cross_entropy_is_torchs() -> None:
    assert F.cross_entropy(torch.tensor([LOGITS]), torch.tensor([1])).item() == pytest.approx(cross_entropy(1))
