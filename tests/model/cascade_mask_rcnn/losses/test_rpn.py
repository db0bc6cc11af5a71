"""Oracle: the losses anchor by anchor in plain Python, where there are too few anchors to choose from."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pipeline.model.cascade_mask_rcnn.losses.assign import NEGATIVE, UNUSED, ImageTargets
from pipeline.model.cascade_mask_rcnn.losses.detector import assign_anchors, rpn_losses, smooth_l1
from pipeline.model.settings import PUBLISHED_SAMPLING
from tests.model.cascade_mask_rcnn.losses.loss_cases import boxes_of, objects, seeded

ANCHORS = boxes_of((0, 0, 20, 20), (0, 0, 20, 15), (30, 30, 50, 50), (30, 30, 60, 60), (40, 40, 64, 64))
OBJECT = (1.0, 0.0, 21.0, 20.0)
SIZE = torch.tensor([64.0, 64.0])


def outputs(images: int = 1) -> list[tuple[Tensor, Tensor]]:
    """Of two levels, with 3 and 2 anchors."""
    generator = seeded(2)
    levels = [
        (torch.randn(images, n, generator=generator), torch.randn(images, n, 4, generator=generator)) for n in (3, 2)
    ]
    return [(logits.requires_grad_(), deltas.requires_grad_()) for logits, deltas in levels]


def losses(out: list[tuple[Tensor, Tensor]], *each: ImageTargets) -> dict[str, Tensor]:
    sizes = SIZE.expand(len(each), 2)
    return rpn_losses(
        out, [ANCHORS[:3], ANCHORS[3:]], sizes, each, [seeded() for _ in each], PUBLISHED_SAMPLING.anchor_quota
    )


def test_which_anchor_is_what() -> None:
    assigned = assign_anchors(ANCHORS, SIZE, objects(OBJECT))
    # IoU 0.9, then 285 / 415; the last touches the right border, which counts as across it.
    assert assigned.tolist() == [0, UNUSED, NEGATIVE, NEGATIVE, UNUSED]
    outside = boxes_of((-0.1, 0, 20, 20), (0, -3, 20, 15), (30, 30, 63.9, 63.9), (30, 30, 50, 65))
    assert assign_anchors(outside, SIZE, objects()).tolist() == [UNUSED, UNUSED, NEGATIVE, UNUSED]
    assert assign_anchors(ANCHORS, torch.tensor([64.0, 55.0]), objects()).tolist()[3] == UNUSED


def test_losses_by_hand() -> None:
    out = outputs()
    found = losses(out, objects(OBJECT))
    (first, second), deltas = (level[0][0].tolist() for level in out), out[0][1][0, 0].tolist()
    cross_entropy = math.log1p(math.exp(-first[0])) + sum(math.log1p(math.exp(x)) for x in (first[2], second[0]))
    assert found["rpn_class"].item() == pytest.approx(cross_entropy / 3, rel=1e-5)
    # The object is 1 / 20 of a side to the right and of the same size.
    differences = [abs(delta - wanted) for delta, wanted in zip(deltas, (0.05, 0, 0, 0), strict=True)]
    smooth = [4.5 * d * d if d < 1 / 9 else d - 1 / 18 for d in differences]
    assert found["rpn_box"].item() == pytest.approx(sum(smooth) / 3, rel=1e-5)


def test_one_divisor_for_the_batch() -> None:
    """Three anchors count in the first image, four in the second: sums over seven."""
    out = outputs(images=2)
    together = losses(out, objects(OBJECT), objects())
    alone = [
        losses([(logits[i : i + 1], deltas[i : i + 1]) for logits, deltas in out], one)
        for i, one in enumerate((objects(OBJECT), objects()))
    ]
    for name, value in together.items():
        assert value.item() == pytest.approx((alone[0][name].item() * 3 + alone[1][name].item() * 4) / 7, rel=1e-5)


def gradients(*each: ImageTargets) -> tuple[Tensor, Tensor]:
    out = outputs(len(each))
    total = sum(losses(out, *each).values())
    assert isinstance(total, Tensor)
    assert total.isfinite()
    total.backward()
    parts = [[level[k].grad for level in out] for k in (0, 1)]
    return torch.cat([g for g in parts[0] if g is not None], 1), torch.cat([g for g in parts[1] if g is not None], 1)


def test_only_what_is_used_has_a_gradient() -> None:
    logits, deltas = gradients(objects(OBJECT))
    assert (logits[0] != 0).tolist() == [True, False, True, True, False]
    assert deltas[0].any(dim=1).tolist() == [True, False, False, False, False]


def test_ignored_objects_have_none() -> None:
    logits, deltas = gradients(objects(OBJECT, ignored=((28.0, 28.0, 45.0, 45.0),)))
    assert (logits[0] != 0).tolist() == [True, False, False, True, False]
    assert deltas[0].any(dim=1).tolist() == [True, False, False, False, False]


@pytest.mark.parametrize(
    "image",
    [
        objects(),
        objects(ignored=((0.0, 0.0, 64.0, 64.0),)),
        objects((0.2, 0.2, 0.3, 0.3)),
        objects((3.0, 3.0, 3.0, 3.0)),
    ],
    ids=["no objects", "all ignored", "smaller than a pixel", "no area"],
)
def test_without_a_positive(image: ImageTargets) -> None:
    logits, deltas = gradients(image)
    assert logits.isfinite().all()
    assert not deltas.any()
    assert logits.any() == (len(image.ignored_boxes) == 0)


def test_smooth_l1_by_hand() -> None:
    # Differences: 0.1 is below 1/9, quadratic: 0.5 * 0.01 * 9; 0.5 and 2 are linear: less 1/18.
    found = smooth_l1(torch.tensor([[0.1, -0.5, 2.0, 0.0]]), torch.zeros(1, 4))
    assert found.item() == pytest.approx(0.045 + 0.5 - 1 / 18 + 2 - 1 / 18)
    assert smooth_l1(torch.zeros(0, 4), torch.zeros(0, 4)).item() == 0
