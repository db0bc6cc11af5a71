"""TIDE's rules one by one; that they are tidecv's as a whole is for ``test_tide`` to show."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings

from pipeline.metrics.analysis.outcomes import MAX_DETECTIONS, Judgement, Outcome, judge
from tests.metrics.block_cases import Image, block, random_images

TP, CLS, LOC, BOTH, DUP, BKG, MISSED, IGNORED, NOT_JUDGED = Outcome


def _judge(*images: Image) -> Judgement:
    truth, found, overlaps = block(*images)
    return judge(truth, found, overlaps)


# Two objects, of categories 0 and 1. Per detection: category, score, IoUs; wanted: outcome, partner; then missed.
CASES = {
    "right": ([(0, 0.9, (0.5, 0.2))], [(TP, 0)], [1]),
    "right in either order of the list": ([(0, 0.1, (0.6, 0)), (0, 0.9, (0.5, 0))], [(DUP, 0), (TP, 0)], [1]),
    "equal scores: the first given": ([(0, 0.5, (0.6, 0)), (0, 0.5, (0.9, 0))], [(TP, 0), (DUP, 0)], [1]),
    "wrong category": ([(0, 0.9, (0, 0.5))], [(CLS, 1)], [0]),
    "wrong category, object taken": ([(1, 0.9, (0, 0.8)), (0, 0.5, (0, 0.8))], [(TP, 1), (CLS, 1)], [0]),
    "badly placed": ([(0, 0.9, (0.1, 0))], [(LOC, 0)], [1]),
    "badly placed before wrong category": ([(0, 0.9, (0.3, 0.9))], [(LOC, 0)], [1]),
    "exactly half of a taken object": ([(0, 0.9, (0.9, 0)), (0, 0.5, (0.5, 0))], [(TP, 0), (LOC, 0)], [1]),
    "wrong category before duplicate": ([(0, 0.9, (0.9, 0)), (0, 0.5, (0.7, 0.6))], [(TP, 0), (CLS, 1)], []),
    "neither category nor place": ([(0, 0.9, (0.05, 0.4))], [(BOTH, 1)], [0, 1]),
    "a third category": ([(2, 0.9, (0.3, 0.4))], [(BOTH, 1)], [0, 1]),
    "background": ([(0, 0.9, (0.05, 0.1))], [(BKG, 1)], [0, 1]),
    "background on nothing": ([(0, 0.9, (0, 0))], [(BKG, -1)], [0, 1]),
    "no detections": ([], [], [0, 1]),
}


@pytest.mark.parametrize("name", CASES)
def test_rules(name: str) -> None:
    detections, wanted, missed = CASES[name]
    judgement = _judge(Image([0, 1], [d[:2] for d in detections], [d[2] for d in detections]))
    got = zip(judgement.outcomes.tolist(), judgement.partners.objects.tolist(), strict=True)
    assert [(Outcome(outcome), partner) for outcome, partner in got] == wanted
    assert np.flatnonzero(judgement.missed).tolist() == missed


def test_of_equal_ious_the_first_object_is_taken_and_then_the_next() -> None:
    judgement = _judge(Image([0, 0], [(0, 0.9), (0, 0.8), (0, 0.7)], [(0.6, 0.6), (0.9, 0.5), (0.5, 0.5)]))
    assert judgement.partners.objects.tolist() == [0, 1, 0]
    assert judgement.outcomes.tolist() == [TP, TP, LOC]


def test_crowds() -> None:
    """A crowd region never matches; it hides errors of its category that lie in it by more than half."""
    judgement = _judge(
        Image(
            [0, 0],
            [(0, 0.9), (0, 0.8), (0, 0.7), (1, 0.6)],
            [(0.9, 0.9), (0.3, 0.51), (0, 0.5), (0, 0.9)],
            crowd=[1],
        )
    )
    assert judgement.outcomes.tolist() == [TP, IGNORED, BKG, BKG]
    assert judgement.partners.objects.tolist() == [0, 1, -1, -1]
    assert judgement.partners.ious.tolist() == [0.9, 0.51, 0, 0]
    assert judgement.mistakes.tolist() == [0, LOC, BKG, BKG]
    assert not judgement.missed.any()


def test_one_detection_mends_an_object() -> None:
    """The best scored of its classification and localisation errors, also one that lies in a crowd."""
    judgement = _judge(
        Image([0], [(0, 0.5), (1, 0.9), (0, 0.7)], [(0.3,), (0.8,), (0.4,)]),
        Image([0, 0], [(0, 0.9), (0, 0.3)], [(0.2, 0.9), (0.4, 0.0)], crowd=[1]),
    )
    assert judgement.outcomes.tolist() == [LOC, CLS, LOC, IGNORED, LOC]
    assert judgement.fixes.tolist() == [-1, 0, -1, 1, -1]
    assert not judgement.missed.any()


def test_only_the_best_hundred_of_an_image_are_judged() -> None:
    scores = [(0, 1 - n / 200) for n in range(MAX_DETECTIONS + 1)]
    judgement = _judge(
        Image([0], scores[::-1], [(1.0,)] + [(0.0,)] * MAX_DETECTIONS), Image([0], [(0, 0.001)], [(0.9,)])
    )
    assert judgement.outcomes.tolist() == [NOT_JUDGED] + [BKG] * MAX_DETECTIONS + [TP]
    assert judgement.missed.tolist() == [True, False]


def test_nothing_at_all() -> None:
    for images in ([], [Image()], [Image([0]), Image(found=[(0, 0.5)], ious=[()])]):
        judgement = _judge(*images)
        assert judgement.outcomes.tolist() == [BKG] * sum(len(image.found) for image in images)
        assert judgement.missed.tolist() == [True] * sum(len(image.objects) for image in images)


@settings(max_examples=60, deadline=None)
@given(random_images())
def test_images_do_not_know_of_each_other(images: list[Image]) -> None:
    whole = _judge(*images)
    parts = [_judge(image) for image in images]
    for name in ("outcomes", "mistakes", "taken", "missed"):
        assert getattr(whole, name).tolist() == [v for part in parts for v in getattr(part, name).tolist()]
    assert whole.partners.ious.tolist() == [v for part in parts for v in part.partners.ious.tolist()]


@settings(max_examples=60, deadline=None)
@given(random_images())
def test_books_balance(images: list[Image]) -> None:
    """Each true positive has an object of its own, of its category; each missed object is of no error."""
    truth, found, overlaps = block(*images)
    judgement = judge(truth, found, overlaps)
    true = judgement.outcomes == TP
    objects = judgement.partners.objects[true]
    assert len(set(objects.tolist())) == true.sum() == judgement.taken.sum()
    assert (truth.categories[objects] == found.categories[true]).all()
    assert not truth.crowd[objects].any()
    assert (judgement.partners.ious[true] >= 0.5).all()
    fixes = judgement.fixes[judgement.fixes >= 0]
    assert len(set(fixes.tolist())) == len(fixes)
    assert not (judgement.missed & judgement.taken).any()
    real = np.flatnonzero(~truth.crowd & ~judgement.taken & ~judgement.missed)
    assert real.tolist() == sorted(fixes.tolist())
