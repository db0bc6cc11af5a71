"""Overlaps of a block against loops over its images."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings

from pipeline.metrics.overlaps import (
    Overlaps,
    best_partners,
    match_in_order,
    score_positions,
)
from pipeline.tables.ragged import image_indices
from tests.metrics.block_cases import Image, block, random_images


def _overlaps(*triples: tuple[int, int, float]) -> Overlaps:
    detections, objects, ious = zip(*triples, strict=True)
    return Overlaps(np.array(detections), np.array(objects), np.array(ious))


@settings(max_examples=60, deadline=None)
@given(random_images())
def test_best_partner_is_the_first_of_the_highest(images: list[Image]) -> None:
    truth, found, overlaps = block(*images)
    best = best_partners(overlaps, len(found.scores))
    wanted = []
    for n, image in enumerate(images):
        for row in image.ious:
            column = int(np.argmax(row)) if row and max(row) > 0 else None
            wanted.append((-1, 0.0) if column is None else (int(truth.offsets[n]) + column, row[column]))
    assert list(zip(best.objects.tolist(), best.ious.tolist(), strict=True)) == wanted
    assert best.present.tolist() == [g >= 0 for g, _ in wanted]


def test_earlier_overlaps_choose_first() -> None:
    matched = match_in_order(_overlaps((1, 0, 0.6), (0, 0, 0.9), (0, 1, 0.5), (1, 1, 1.0), (2, 1, 0.7)), 4, 2)
    assert matched.objects.tolist() == [1, 0, -1, -1]
    assert matched.ious.tolist() == [0.5, 0.6, 0.0, 0.0]


def test_positions_keep_the_given_order_of_equal_scores() -> None:
    _, found, _ = block(
        Image(found=[(0, 0.1), (0, 0.5), (1, 0.5), (0, -0.0), (0, 0.0)]), Image(), Image(found=[(0, 0.2), (0, 0.9)])
    )
    assert score_positions(found).tolist() == [2, 0, 1, 3, 4, 6, 5]
    assert image_indices(found.offsets).tolist() == [0, 0, 0, 0, 0, 2, 2]
