"""Counts by hand, and what the generators decide."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pipeline.model.cascade_mask_rcnn.losses.assign import NEGATIVE, UNUSED
from pipeline.model.cascade_mask_rcnn.losses.sampling import image_generators, sample
from pipeline.model.settings import Quota
from tests.model.cascade_mask_rcnn.losses.loss_cases import seeded


def assigned(positives: int, negatives: int, unused: int = 7) -> Tensor:
    """Shuffled alike each time."""
    values = torch.tensor([3] * positives + [NEGATIVE] * negatives + [UNUSED] * unused)
    return values[torch.randperm(len(values), generator=seeded(1))]


# name: (positives, negatives, sampled positives, sampled negatives) of a quota of 16, a quarter positive
COUNTS = {
    "more than enough of both": (50, 90, 4, 12),
    "few positives: negatives fill up": (2, 90, 2, 14),
    "no positives": (0, 90, 0, 16),
    "few negatives: positives do not fill up": (50, 3, 4, 3),
    "just enough": (4, 12, 4, 12),
    "nothing": (0, 0, 0, 0),
}


@pytest.mark.parametrize(("positives", "negatives", "found", "background"), COUNTS.values(), ids=COUNTS.keys())
def test_counts(positives: int, negatives: int, found: int, background: int) -> None:
    values = assigned(positives, negatives)
    chosen, rest = sample(values, Quota(16, 0.25), seeded())
    assert (len(chosen), len(rest)) == (found, background)
    assert (values[chosen] == 3).all()
    assert (values[rest] == NEGATIVE).all()
    for index in (chosen, rest):
        assert index.tolist() == sorted(set(index.tolist()))


def test_the_generator_decides() -> None:
    values = assigned(50, 90)
    first, again, other = (sample(values, Quota(16, 0.25), seeded(s)) for s in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_every_candidate_has_its_turn() -> None:
    values, generator = assigned(6, 0), seeded()
    drawn = torch.cat([sample(values, Quota(8, 0.25), generator)[0] for _ in range(600)])
    counts = torch.bincount(drawn, minlength=len(values))[values >= 0]
    assert counts.sum() == 1200
    assert (counts - 200).abs().max() < 60


def draws(ids: list[int | str], seed: int) -> dict[int | str, int]:
    generators = image_generators(ids, seeded(seed))
    return {i: int(torch.randint(1 << 40, (), generator=g)) for i, g in zip(ids, generators, strict=True)}


def test_an_image_draws_alike_wherever_it_is() -> None:
    together = draws([5, "a", 9], 0)
    assert together == draws(["a"], 0) | draws([9, 5], 0)
    assert len(set(together.values())) == 3
    assert together[5] != draws([5], 1)[5]


def test_the_next_batch_draws_anew() -> None:
    generator = seeded()
    first, second = (image_generators([5], generator)[0].initial_seed() for _ in range(2))
    assert first != second
