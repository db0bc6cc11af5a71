"""RoIs whose bins are whole pixels, or whole parts of them, so that targets can be read off."""

from __future__ import annotations

import torch

from pipeline.model.cascade_mask_rcnn.losses.cascade import mask_targets
from tests.model.cascade_mask_rcnn.losses.loss_cases import boxes_of, masks_of


def noise(count: int, side: int = 64) -> torch.Tensor:
    return torch.rand(count, side, side, generator=torch.Generator().manual_seed(0)) > 0.5


def test_a_bin_a_pixel() -> None:
    masks = noise(3)
    targets = mask_targets(masks, boxes_of((4, 9, 32, 37), (20, 30, 48, 58)), torch.tensor([2, 0]), 28)
    assert targets.dtype == torch.float32
    assert torch.equal(targets.bool(), torch.stack([masks[2, 9:37, 4:32], masks[0, 30:58, 20:48]]))


def test_four_pixels_a_bin_half_of_them_count() -> None:
    masks = noise(1)
    target = mask_targets(masks, boxes_of((2, 4, 58, 60)), torch.tensor([0]), 28)[0]
    share = masks[0, 4:60, 2:58].float().reshape(28, 2, 28, 2).mean(dim=(1, 3))
    assert torch.equal(target, (share >= 0.5).float())


def test_the_part_of_a_box_that_an_object_fills() -> None:
    masks = masks_of(boxes_of((0, 0, 14, 64)))
    target = mask_targets(masks, boxes_of((0, 0, 28, 28)), torch.tensor([0]), 4)[0]
    assert target.tolist() == [[1, 1, 0, 0]] * 4


def test_more_objects_than_are_held_at_once() -> None:
    masks = noise(70, side=28)
    owners = torch.randperm(70, generator=torch.Generator().manual_seed(1))
    boxes = boxes_of((0, 0, 28, 28)).expand(70, 4)
    assert torch.equal(mask_targets(masks, boxes, owners, 28).bool(), masks[owners])


def test_a_box_within_one_pixel() -> None:
    masks = masks_of(boxes_of((5, 5, 6, 6)))
    target = mask_targets(masks, boxes_of((5.4, 5.4, 5.6, 5.6)), torch.tensor([0]), 28)
    assert target.all()


def test_no_boxes_and_no_objects() -> None:
    assert mask_targets(noise(0), boxes_of(), torch.zeros(0, dtype=torch.int64), 28).shape == (0, 28, 28)
    assert mask_targets(noise(2), boxes_of(), torch.zeros(0, dtype=torch.int64), 28).shape == (0, 28, 28)
