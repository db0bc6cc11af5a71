from __future__ import annotations

import numpy as np
import pytest

from pipeline.metrics.ap.matching import ALL_THRESHOLDS, MatchTargets, match
from pipeline.metrics.overlaps import Overlaps

ALL = int(ALL_THRESHOLDS)


def up_to(iou: float) -> int:
    """Bits of the thresholds 0.5, 0.55, ... that an IoU of two digits reaches."""
    return (1 << (round(iou * 100) - 50) // 5 + 1) - 1


def above(iou: float) -> int:
    """Bits of the other thresholds."""
    return ALL & ~up_to(iou)


# name: IoUs [D, G] in the order of ranks; per object ignored, crowd, countable; per detection outside the range;
# expected tp and fp.
CASES = {
    "one to one": ([[0.77]], ["..."], [0], [up_to(0.77)], [above(0.77)]),
    "below every threshold": ([[0.49]], ["..."], [0], [0], [ALL]),
    "on a threshold": ([[0.5]], ["..."], [0], [up_to(0.5)], [above(0.5)]),
    "a better duplicate": ([[0.77], [0.97]], ["..."], [0, 0], [up_to(0.77), above(0.77)], [above(0.77), up_to(0.77)]),
    # The first takes the later of two equal objects, or the second would find nothing above 0.6.
    "the last of equal IoUs": ([[0.97, 0.97], [0.97, 0.62]], ["...", "..."], [0, 0], [ALL, ALL], [0, 0]),
    "the second best": ([[0.97, 0.62], [0.97, 0.62]], ["...", "..."], [0, 0], [ALL, up_to(0.62)], [0, above(0.62)]),
    "a real object before a better ignored one": ([[0.62, 0.97]], ["...", "i.."], [0], [up_to(0.62)], [0]),
    "an ignored object is taken once": ([[0.97], [0.97]], ["i.."], [0, 0], [0, 0], [0, ALL]),
    "a crowd is taken by many": ([[0.97], [0.97]], ["ic."], [0, 0], [0, 0], [0, 0]),
    "outside the range and unmatched": ([[0.49]], ["..."], [1], [0], [0]),
    "outside the range and matched": ([[0.77]], ["..."], [1], [up_to(0.77)], [0]),
    "id 0 is taken and does not count": ([[0.97], [0.97]], ["..0"], [0, 0], [0, 0], [ALL, ALL]),
    "id 0 and another": ([[0.97, 0.62], [0.97, 0.62]], ["..0", "..."], [0, 0], [0, up_to(0.62)], [ALL, above(0.62)]),
    "ignored id 0": ([[0.97]], ["i.0"], [0], [0], [0]),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_one_cell(name):
    ious, flags, outside, tp, fp = CASES[name]
    matrix = np.array(ious)
    detections, objects = np.nonzero(matrix >= 0.5)
    real = MatchTargets(
        ignored=np.array([[flag[0] == "i"] for flag in flags]),
        crowd=np.array([flag[1] == "c" for flag in flags]),
        countable=np.array([flag[2] != "0" for flag in flags]),
    )
    pairs = Overlaps(detections, objects, matrix[detections, objects])
    got = match(pairs, real, np.arange(len(matrix)), np.array(outside, np.bool_)[:, None])
    assert [column[:, 0].tolist() for column in got] == [tp, fp]


def test_every_range_chooses_for_itself():
    objects = MatchTargets(np.array([[False, True], [True, False]]), np.zeros(2, np.bool_), np.ones(2, np.bool_))
    pairs = Overlaps(np.array([0, 0]), np.array([0, 1]), np.array([0.97, 0.62]))
    tp, fp = match(pairs, objects, np.zeros(1, np.int64), np.zeros((1, 2), np.bool_))
    # Where the better object is ignored, the other one is taken as far as it goes.
    assert tp.tolist() == [[ALL, up_to(0.62)]]
    assert fp.tolist() == [[0, 0]]


def test_the_order_of_pairs_does_not_matter():
    rng = np.random.default_rng(0)
    ious = rng.integers(10, 20, (30, 12)) / 20
    cell = np.repeat([0, 1, 2], 10)
    detections, objects = np.nonzero((ious >= 0.5) & (cell[:, None] == np.repeat([0, 1, 2], 4)))
    ranks = np.concatenate([rng.permutation(10) for _ in range(3)])
    real = MatchTargets(rng.random((12, 4)) < 0.3, rng.random(12) < 0.2, rng.random(12) < 0.9)
    outside = rng.random((30, 4)) < 0.3
    expected = match(Overlaps(detections, objects, ious[detections, objects]), real, ranks, outside)
    for _ in range(5):
        mixed = rng.permutation(len(detections))
        pairs = Overlaps(detections[mixed], objects[mixed], ious[detections, objects][mixed])
        np.testing.assert_array_equal(match(pairs, real, ranks, outside), expected)


def test_no_pairs():
    tp, fp = match(
        Overlaps(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0)),
        MatchTargets(np.empty((0, 4), np.bool_), np.empty(0, np.bool_), np.empty(0, np.bool_)),
        np.arange(2),
        np.array([[False] * 4, [True] * 4]),
    )
    assert tp.tolist() == [[0] * 4, [0] * 4]
    assert fp.tolist() == [[ALL] * 4, [0] * 4]
