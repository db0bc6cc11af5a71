"""Oracle: the forward with lists (`reference_forward`). In float32 no bit differs, whatever is padded.

Where slots are computed whether they are filled or not, the kernels may sum in another order: there the results are
equal but for rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.model.cascade_mask_rcnn import cascade
from pipeline.model.cascade_mask_rcnn.cascade import select_detections
from pipeline.model.cascade_mask_rcnn.detector import CascadeMaskRCNN
from pipeline.model.cascade_mask_rcnn.rpn import level_anchors, propose
from pipeline.model.detections import BatchDetections
from pipeline.model.files.checkpoints import Checkpoint
from pipeline.model.predictor import load_model
from pipeline.model.preprocess import input_shape, pack, packed_size, preprocess
from pipeline.model.settings import TestSettings
from testing.small_model import SMALL_SETTINGS, picture
from tests.model.cascade_mask_rcnn import reference_forward
from tests.model.cascade_mask_rcnn.reference_forward import ImageDetections
from tests.model.golden_cases import CASES, golden

CPU = torch.device("cpu")
FIELDS = ("boxes", "scores", "labels", "masks")
Inputs = tuple[Tensor, Tensor, Tensor]


@pytest.fixture(scope="module")
def small(small_checkpoint: Checkpoint) -> CascadeMaskRCNN:
    return detector_of(small_checkpoint)


def detector_of(checkpoint: Checkpoint) -> CascadeMaskRCNN:
    detector = load_model(checkpoint, "cpu").detector
    assert isinstance(detector, CascadeMaskRCNN)
    return detector


def inputs_of(images: Sequence[np.ndarray], settings: TestSettings) -> Inputs:
    """Pixels, sizes and factors of pictures of one size."""
    buffer = np.empty(packed_size(images), np.uint8)
    pack(images, [image.shape[:2] for image in images], settings, buffer)
    return preprocess(torch.from_numpy(buffer), len(images), input_shape(images[0].shape[:2], settings))


@torch.inference_mode()
def detect(
    detector: CascadeMaskRCNN, inputs: Inputs, settings: TestSettings, compact: bool = True, every: bool = False
) -> BatchDetections:
    plan = detector.plan((inputs[0].shape[2], inputs[0].shape[3]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(detector, "compact", compact)
        return detector(*inputs, plan, settings, every_candidate=every)


@torch.inference_mode()
def reference(detector: CascadeMaskRCNN, inputs: Inputs, settings: TestSettings) -> list[ImageDetections]:
    return reference_forward.forward(detector, *inputs, settings)


def assert_equal(
    found: BatchDetections, expected: list[ImageDetections], tolerance: float = 0.0, of_masks: float = 0.0
) -> None:
    """The same in the slots that are filled, zeros in all others."""
    assert found.counts.tolist() == [len(image.scores) for image in expected]
    for i, image in enumerate(expected):
        for name in FIELDS:
            values, wanted = getattr(found, name)[i], getattr(image, name)
            assert values.dtype == wanted.dtype
            allowed = max(tolerance, of_masks) if name == "masks" else tolerance
            torch.testing.assert_close(values[: len(wanted)], wanted, rtol=0, atol=allowed)
            assert not values[len(wanted) :].any()


# ------------------------------------------------------------------------------------------------------- whole detector
@st.composite
def cases(draw: st.DrawFn) -> tuple[Inputs, TestSettings]:
    """A batch of pictures of one size, and settings of every kind."""
    size = draw(st.sampled_from([(60, 90), (111, 50), (1, 1), (7, 3000), (96, 160), (30, 31), (33, 64)]))
    settings = TestSettings(
        short_side=draw(st.sampled_from([32, 64, 96])),
        long_side=160,
        proposals_per_level=draw(st.sampled_from([1, 7, 40, 100])),
        proposals=draw(st.sampled_from([1, 20, 60, 1000])),
        rpn_nms_iou=draw(st.sampled_from([0.0, 0.4, 0.7, 1.0])),
        score_threshold=draw(st.sampled_from([0.0, 0.05, 0.2, 0.5, 1.0])),
        nms_iou=draw(st.sampled_from([0.0, 0.5, 1.0])),
        max_detections=draw(st.sampled_from([1, 5, 30, 500])),
    )
    seeds = draw(st.lists(st.integers(0, 3), min_size=1, max_size=3))
    return inputs_of([picture(*size, seed) for seed in seeds], settings), settings


@given(case=cases(), candidates=st.sampled_from([1, 20, 2048]))
@hypothesis_settings(max_examples=60, deadline=None)
def test_equal_to_the_reference(small: CascadeMaskRCNN, case: tuple[Inputs, TestSettings], candidates: int) -> None:
    """Where the best candidates did not decide, the image says so, and all of them do."""
    inputs, settings = case
    expected = reference(small, inputs, settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cascade, "CANDIDATES", candidates)
        found = detect(small, inputs, settings)
        everything = detect(small, inputs, settings, every=True)
    assert found.finite.all()
    assert everything.final.all()
    assert_equal(everything, expected)
    for i, final in enumerate(found.final.tolist()):
        if final:
            # Convolutions of more or fewer objects at once may round a soft mask's value otherwise.
            assert_equal(one(found, i), expected[i : i + 1], of_masks=1e-6)


def one(found: BatchDetections, image: int) -> BatchDetections:
    return BatchDetections(**{name: value[image : image + 1] for name, value in vars(found).items()})


@pytest.mark.parametrize("every", [False, True])
@given(case=cases())
@hypothesis_settings(max_examples=15, deadline=None)
def test_padded_is_compact_but_for_rounding(
    small: CascadeMaskRCNN, every: bool, case: tuple[Inputs, TestSettings]
) -> None:
    inputs, settings = case
    compact, padded = (detect(small, inputs, settings, compact, every) for compact in (True, False))
    for name, value in vars(compact).items():
        torch.testing.assert_close(getattr(padded, name), value, rtol=0, atol=1e-3)


@pytest.mark.parametrize("case", CASES)
def test_golden_cases_are_equal_to_the_reference(golden_checkpoint: Checkpoint, case: str) -> None:
    data = golden(case)
    settings = replace(data.settings, proposals=150, score_threshold=0.02)
    inputs = inputs_of([data.image, data.image[:, ::-1]], settings)
    detector = detector_of(golden_checkpoint)
    found = detect(detector, inputs, settings)
    assert found.final.all()
    assert (found.counts > 3).all()
    assert (found.counts < 100).all()
    assert_equal(found, reference(detector, inputs, settings))


def test_nothing_found(small: CascadeMaskRCNN) -> None:
    settings = replace(SMALL_SETTINGS, score_threshold=1.0)
    for compact in (True, False):
        found = detect(small, inputs_of([picture(60, 90)] * 2, settings), settings, compact)
        assert found.masks.shape == (2, settings.max_detections, 28, 28)
        assert not any(getattr(found, name).any() for name in (*FIELDS, "counts"))
        assert found.final.all()
        assert found.finite.all()


# ----------------------------------------------------------------------------------------------------------- not finite
@pytest.mark.parametrize("compact", [True, False])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_image_that_is_not_finite_leaves_the_others_alone(
    small: CascadeMaskRCNN, value: float, compact: bool
) -> None:
    inputs = inputs_of([picture(60, 90, seed) for seed in range(3)], SMALL_SETTINGS)
    expected = detect(small, inputs, SMALL_SETTINGS, compact)
    inputs[0][1, 0, 40, 50] = value
    found = detect(small, inputs, SMALL_SETTINGS, compact)
    assert found.finite.tolist() == [True, False, True]
    for i in (0, 2):
        for name in FIELDS:
            torch.testing.assert_close(getattr(found, name)[i], getattr(expected, name)[i], rtol=0, atol=1e-3)


# name: a weight; NaN in it reaches what is looked at in every image, or in those with detections
WEIGHTS = {
    "features": "neck.outputs.0.bias",
    "scores of proposals": "rpn.objectness.bias",
    "boxes of proposals": "rpn.deltas.bias",
    "scores of a stage": "box_heads.stages.0.classify.bias",
    "boxes of a stage": "box_heads.stages.0.regress.bias",
    "boxes of the last stage": "box_heads.stages.2.regress.bias",
    "masks": "mask_heads.stages.1.predict.bias",
}


@pytest.mark.parametrize("compact", [True, False])
@pytest.mark.parametrize("weight", WEIGHTS.values(), ids=WEIGHTS.keys())
def test_a_weight_that_is_nan_is_seen(small_checkpoint: Checkpoint, weight: str, compact: bool) -> None:
    detector = detector_of(small_checkpoint)
    detector.get_parameter(weight).data.fill_(float("nan"))
    found = detect(detector, inputs_of([picture(60, 90)], SMALL_SETTINGS), SMALL_SETTINGS, compact)
    assert found.finite.tolist() == [False]


# ----------------------------------------------------------------------------------------------------- parts, with ties
@st.composite
def outputs(draw: st.DrawFn) -> tuple[list[tuple[Tensor, Tensor]], list[Tensor], Tensor, TestSettings]:
    """Of a proposal network that knows a few scores only, with boxes that are often the same."""
    batch, shape = draw(st.integers(1, 3)), draw(st.sampled_from([(32, 32), (64, 96), (96, 64)]))
    random = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    grids = level_anchors(shape, CPU)

    def coarse(*size: int) -> Tensor:
        return torch.randint(-3, 4, size, generator=random).float() / 2

    levels = [(coarse(batch, len(grid)), coarse(batch, len(grid), 4)) for grid in grids]
    settings = TestSettings(
        proposals_per_level=draw(st.sampled_from([5, 50, 400])), proposals=draw(st.sampled_from([3, 60, 1000]))
    )
    return levels, grids, torch.tensor([shape] * batch).float(), settings


@given(case=outputs())
@hypothesis_settings(max_examples=60, deadline=None)
def test_proposals_with_ties(case: tuple[Any, ...]) -> None:
    found = propose(*case)
    _, grids, _, settings = case
    assert found.valid.shape[1] == min(settings.proposals, 5 * min(settings.proposals_per_level, len(grids[0])))
    for i, (boxes, scores) in enumerate(reference_forward.propose(*case)):
        count = len(scores)
        assert found.valid[i].tolist() == [True] * count + [False] * (found.valid.shape[1] - count)
        assert torch.equal(found.boxes[i, :count], boxes)
        assert torch.equal(found.scores[i, :count], scores)
        assert not found.boxes[i, count:].any()


@st.composite
def candidates(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, TestSettings]:
    """Of a last stage that knows a few scores only, with boxes that overlap; empty slots have no score."""
    B, P, K = draw(st.integers(1, 3)), draw(st.integers(1, 12)), draw(st.integers(1, 4))
    random = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))

    def coarse(*size: int, most: int) -> Tensor:
        return torch.randint(0, most + 1, size, generator=random).float()

    low = coarse(B, P, 2, most=5) * 20
    boxes = torch.cat([low, low + coarse(B, P, 2, most=4) * 20], dim=2)
    settings = TestSettings(
        score_threshold=draw(st.sampled_from([0.0, 0.125, 0.5, 1.0])),
        nms_iou=draw(st.sampled_from([0.0, 0.3, 0.5, 1.0])),
        max_detections=draw(st.sampled_from([1, 3, 40])),
    )
    sizes, factors = torch.tensor([[130.0, 150.0]] * B), torch.tensor([[1.5, 0.7]] * B)
    return boxes, coarse(B, P, K, 4, most=4) - 2, coarse(B, P, K, most=8) / 8, sizes, factors, settings


@given(case=candidates(), number=st.sampled_from([1, 4, 2048]))
@hypothesis_settings(max_examples=200, deadline=None)
def test_selection_with_ties_and_with_more_candidates_than_are_looked_at(case: tuple[Any, ...], number: int) -> None:
    *inputs, settings = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cascade, "CANDIDATES", number)
        best, every = (select_detections(*inputs, settings, every_candidate=flag) for flag in (False, True))
    assert every.final.all()
    for i, image in enumerate(zip(*inputs, strict=True)):
        expected = reference_forward.select(*image, settings)
        looked_at = min(inputs[2][i].numel(), max(number, 2 * settings.max_detections))
        eligible = int((inputs[2][i] > settings.score_threshold).sum())
        for found in (best, every) if best.final[i] else (every,):
            assert int(found.valid[i].sum()) == len(expected[1])
            for values, wanted in zip(found[:3], expected, strict=True):
                assert torch.equal(values[i, : len(wanted)], wanted)
                assert not values[i, len(wanted) :].any()
        if eligible <= looked_at:
            assert best.final[i]
        elif not best.final[i]:
            assert best.valid[i].sum() < settings.max_detections


def test_a_crowd_at_one_place_is_not_final() -> None:
    """The best candidates suppress each other; the only other object has the lowest score."""
    boxes = torch.tensor([[[0.0, 0, 50, 50]] * 9 + [[60.0, 60, 90, 90]]])
    scores = torch.linspace(0.9, 0.5, 10)[None, :, None]
    settings = TestSettings(max_detections=2)
    inputs = boxes, torch.zeros(1, 10, 1, 4), scores, torch.full((1, 2), 100.0), torch.ones(1, 2), settings
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cascade, "CANDIDATES", 4)
        best, every = (select_detections(*inputs, every_candidate=flag) for flag in (False, True))
    assert best.final.tolist() == [False]
    assert best.valid.tolist() == [[True, False]]
    assert every.final.tolist() == [True]
    assert every.boxes_image[0].tolist() == [boxes[0, 0].tolist(), boxes[0, -1].tolist()]
