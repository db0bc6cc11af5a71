"""The whole loss on a small detector: every kind of batch, every parameter, and that it can be learnt."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from pipeline.model.batch import Batch
from pipeline.model.cascade_mask_rcnn.losses import cascade, detector
from pipeline.model.cascade_mask_rcnn.losses.detector import DetectorLoss
from pipeline.model.settings import SamplingConfig
from pipeline.train.loop.finite import check_finite
from tests.model.cascade_mask_rcnn.losses.loss_cases import SIDE, TWO, batch, seeded, small_loss, target

ALL = (0.0, 0.0, 64.0, 64.0)
NAMES = ["rpn_class", "rpn_box"] + [f"stage{s}_{part}" for s in (1, 2, 3) for part in ("class", "box", "mask")]


pytestmark = pytest.mark.usefixtures("one_thread")

BATCHES: dict[str, Batch] = {
    "two objects": batch(target(*TWO)),
    "one object, and an image without": batch(target(TWO[0]), target()),
    "no objects at all": batch(target(), target()),
    "all ignored": batch(target(ALL, ignored=(0,))),
    "ignored beside an object": batch(target(*TWO, ignored=(1,))),
    "smaller than a pixel": batch(target((20.2, 20.2, 20.5, 20.6))),
    "no area": batch(target((20.0, 20.0, 20.0, 20.0))),
    "the whole image": batch(target(ALL)),
}


def total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


@pytest.mark.parametrize("images", BATCHES.values(), ids=BATCHES.keys())
def test_finite_and_all_parameters_take_part(images: Batch) -> None:
    model = small_loss()
    losses = model(images, seeded())
    assert list(losses) == NAMES
    assert all(loss.isfinite() and loss.shape == () for loss in losses.values())
    check_finite(losses, images)
    total(losses).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    for name, buffer in model.named_buffers():
        assert buffer.isfinite().all(), name


def test_all_ignored_teaches_nothing() -> None:
    """Each anchor inside the image lies within the ignored object."""
    model = small_loss()
    losses = model(BATCHES["all ignored"], seeded())
    assert all(loss == 0 for loss in losses.values())
    total(losses).backward()
    assert not any(p.grad is not None and p.grad.any() for p in model.parameters())


def test_ignored_objects_teach_no_background() -> None:
    """The object is brought in and taken out as ignored: as background it would add to the loss."""
    model = small_loss()
    without, ignored = (
        model(replace(BATCHES["two objects"], targets=(one,)), seeded())
        for one in (target(TWO[0]), target(*TWO, ignored=(1,)))
    )
    assert ignored["rpn_class"] != without["rpn_class"]
    as_object = model(BATCHES["two objects"], seeded())
    assert ignored["stage1_mask"] != as_object["stage1_mask"]


# Below what such small images have to offer.
FEW = SamplingConfig(anchors=16, rois=32)


def test_the_generator_decides() -> None:
    model, images = small_loss(sampling=FEW).eval(), BATCHES["two objects"]
    first, again, other = (total(model(images, seeded(s))).item() for s in (1, 1, 2))
    assert first == again != other


def test_two_workers_equal_one_with_both_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """What each image adds, divided by what two workers have on average, and averaged."""
    first, second = target(*TWO), target((10.0, 40.0, 34.0, 60.0))
    both = batch(first, second, ids=("a", "b"))
    model, counts = small_loss(sampling=FEW).eval(), []
    original = cascade.per_worker

    def remember(*values: int | Tensor, device: torch.device) -> Tensor:
        counts.append(original(*values, device=device))
        return counts[-1]

    set_normaliser(monkeypatch, remember)
    whole = gradients(model, both)
    parts = []
    for i in (0, 1):
        given = iter(counts)
        set_normaliser(monkeypatch, lambda *values, device, given=given: next(given) / 2)
        rows = slice(i, i + 1)
        one = Batch(both.image_ids[rows], both.images[rows], both.image_sizes[rows], both.targets[rows])
        parts.append(gradients(model, one))
    for name, gradient in whole.items():
        mean = (parts[0][name] + parts[1][name]) / 2
        torch.testing.assert_close(mean, gradient, rtol=1e-3, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")


def set_normaliser(monkeypatch: pytest.MonkeyPatch, function: object) -> None:
    for module in (detector, cascade):
        monkeypatch.setattr(module, "per_worker", function)


def gradients(model: DetectorLoss, images: Batch) -> dict[str, Tensor]:
    model.zero_grad()
    total(model(images, seeded())).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_autocast_leaves_losses_in_float32() -> None:
    model, images = small_loss().eval(), BATCHES["two objects"]
    plain = model(images, seeded())
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(images, seeded())
    assert all(loss.dtype == torch.float32 for loss in mixed.values())
    assert total(mixed).item() == pytest.approx(total(plain).item(), rel=0.1)
    total(mixed).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_overfits_two_objects() -> None:
    model, images, generator = small_loss(), BATCHES["two objects"], seeded()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    seen = []
    for _ in range(30):
        loss = total(model(images, generator))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        seen.append(loss.item())
    assert sum(seen[-3:]) / 3 < 0.5 * seen[0]
    assert images.images.shape[-1] == SIDE
