"""Which RoIs a stage gets, and where it sends them, on cases small enough that all are sampled."""

from __future__ import annotations

import pytest
import torch
from torchvision.ops import box_iou

from pipeline.model.cascade_mask_rcnn.losses.assign import ImageTargets
from pipeline.model.cascade_mask_rcnn.losses.sampling import NO_LABEL, StageSamples, draw_samples, refine
from pipeline.model.settings import PUBLISHED_SAMPLING, Quota
from tests.model.cascade_mask_rcnn.losses.loss_cases import TWO, boxes_of, masks_of, objects, seeded

K = 3
FAR = (50.0, 0.0, 60.0, 10.0)
NEAR = (6.0, 8.0, 30.0, 36.0)  # 28 / 32 of the first of TWO
SIZES = torch.tensor([[64.0, 64.0], [64.0, 64.0]])
UNITS = (0.1, 0.1, 0.2, 0.2)


def draw(*images: tuple[list[tuple[float, ...]], object], min_iou: float = 0.5) -> StageSamples:
    proposals = [boxes_of(*rows) for rows, _ in images]
    each = [one for _, one in images]
    generators = [seeded() for _ in images]
    return draw_samples(proposals, each, min_iou, K, generators, PUBLISHED_SAMPLING.roi_quota)  # type: ignore[arg-type]


def test_objects_join_the_proposals() -> None:
    samples = draw(([FAR, NEAR], objects(*TWO)), ([FAR], objects()))
    assert samples.boxes.tolist() == [list(row) for row in (*TWO, NEAR, FAR, FAR)]
    assert samples.images.tolist() == [0, 0, 0, 0, 1]
    assert samples.labels.tolist() == [0, 1, 0, K, K]
    assert samples.owners.tolist() == [0, 1, 0, -1, -1]
    assert samples.is_object.tolist() == [True, True, False, False, False]
    assert samples.positive.tolist() == [True, True, True, False, False]


def test_an_objects_own_box_is_its_own() -> None:
    """Of objects with one box each is learnt (mmdet's ``AssignResult.add_gt_``); a proposal there finds the first."""
    samples = draw(([TWO[0]], objects(TWO[0], TWO[1], TWO[0])))
    assert samples.owners.tolist() == [0, 1, 2, 0]
    assert samples.labels.tolist() == [0, 1, 2, 0]
    assert samples.is_object.tolist() == [True, True, True, False]


@pytest.mark.parametrize("seed", range(5))
def test_assignment_by_mmdets_rule(seed: int) -> None:
    """``MaxIoUAssigner`` on the proposals (``match_low_quality=False``), then ``add_gt_``, whatever is ignored."""
    torch.manual_seed(seed)
    corners = torch.randint(0, 5, (60, 4)).float() * 8
    boxes = torch.cat([corners[:, :2], corners[:, :2] + 8 + corners[:, 2:]], dim=1)
    own, proposals = torch.cat([boxes[:15], boxes[:5]]), boxes[15:]
    image = ImageTargets(own, torch.arange(20) % K, masks_of(own), own[:1])
    samples = draw_samples([proposals], [image], 0.5, K, [seeded()], Quota(1000, 1.0))
    assert samples.owners[samples.is_object].tolist() == list(range(20))
    best = box_iou(proposals, own).max(dim=1)
    owned = best.values >= 0.5
    assert samples.owners[~samples.is_object & samples.positive].tolist() == best.indices[owned].tolist()


@pytest.mark.parametrize(("min_iou", "label"), [(0.5, 0), (0.875, 0), (0.88, K)])
def test_threshold_of_the_stage(min_iou: float, label: int) -> None:
    assert draw(([NEAR], objects(TWO[0])), min_iou=min_iou).labels.tolist() == [0, label]


def test_quota() -> None:
    grid = [(float(x), 50.0, x + 8.0, 58.0) for x in torch.linspace(0, 50, 700)]
    samples = draw((grid + [TWO[0]] * 200, objects(TWO[0])))
    assert len(samples.boxes) == 512
    assert samples.positive.sum() == 128


@pytest.mark.parametrize("proposals", [[], [FAR, NEAR]], ids=["no proposals", "all ignored"])
def test_nothing_to_sample_is_one_roi_without_a_label(proposals: list[tuple[float, ...]]) -> None:
    nothing = objects(ignored=((0.0, 0.0, 64.0, 64.0),))
    samples = draw((proposals, nothing), ([], objects()))
    assert samples.labels.tolist() == [NO_LABEL]
    assert not samples.positive.any()
    refined = refine(samples, torch.zeros(1, K + 1), torch.zeros(1, K, 4), UNITS, SIZES)
    assert [len(boxes) for boxes in refined] == [0, 0]


def test_refinement() -> None:
    samples = draw(([NEAR, FAR], objects(TWO[0])), ([TWO[1]], objects()))
    assert samples.labels.tolist() == [0, 0, K, K]
    # Class 2 is the best but background; the positive moves as its own class 0 says all the same.
    logits = torch.tensor([[0.0, 1.0, 2.0, 9.0]]).expand(4, -1)
    deltas = torch.zeros(4, K, 4)
    deltas[:, 0, 0], deltas[:, 2, 1] = 1.0, -20.0
    first, second = refine(samples, logits, deltas, UNITS, SIZES)
    # A tenth of 24 to the right; two sides up, cut at the border. The object's own box is gone.
    torch.testing.assert_close(first, boxes_of((8.4, 8, 32.4, 36), (50, 0, 60, 0)))
    torch.testing.assert_close(second, boxes_of((34, 0, 62, 0)))
