from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pipeline.train.loop.finite import NonFiniteLoss, check_finite
from tests.model.cascade_mask_rcnn.losses.loss_cases import TWO, batch, seeded, small_loss, target


def test_nan_is_reported_and_nothing_else_fails() -> None:
    images = batch(target(TWO[0]), target())
    broken = replace(images, image_ids=(17, "dir/b.jpg"), images=images.images * float("nan"))
    losses = small_loss()(broken, seeded())
    with pytest.raises(NonFiniteLoss, match=r"rpn_class = nan.*image ids 17, dir/b\.jpg"):
        check_finite(losses, broken)


def test_only_the_bad_parts_are_named() -> None:
    losses = {"rpn_class": torch.tensor(1.0), "stage2_mask": torch.tensor(float("inf"))}
    with pytest.raises(NonFiniteLoss, match=r"\(stage2_mask = inf\)"):
        check_finite(losses, batch(target(*TWO)))
