"""The confusion matrix by hand, and that its rows and columns add up."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings

from pipeline.metrics.analysis.confusion import ConfusionMatrix
from pipeline.tables.arrays import Int64s
from tests.metrics.block_cases import NUM_CATEGORIES, Image, block, compared, random_images

NOTHING = NUM_CATEGORIES  # row: detections of nothing; column: objects not detected

CASES = {
    "right": (Image([0], [(0, 0.9)], [(0.5,)]), {(0, 0): 1}),
    "another category": (Image([0], [(1, 0.9)], [(0.5,)]), {(0, 1): 1}),
    "too little overlap": (Image([0], [(0, 0.9)], [(0.49,)]), {(0, NOTHING): 1, (NOTHING, 0): 1}),
    "score too low": (Image([0], [(0, 0.29)], [(0.9,)]), {(0, NOTHING): 1}),
    "score just enough": (Image([0], [(0, 0.3)], [(0.9,)]), {(0, 0): 1}),
    "the higher IoU wins, not the score": (
        Image([0], [(1, 0.9), (0, 0.4)], [(0.6,), (0.7,)]),
        {(0, 0): 1, (NOTHING, 1): 1},
    ),
    "equal IoUs: the better score": (Image([0], [(0, 0.4), (1, 0.9)], [(0.7,), (0.7,)]), {(0, 1): 1, (NOTHING, 0): 1}),
    "equal IoUs and scores: the right category": (
        Image([0], [(1, 0.9), (0, 0.9)], [(0.7,), (0.7,)]),
        {(0, 0): 1, (NOTHING, 1): 1},
    ),
    "second choice": (Image([0, 1], [(0, 0.9), (1, 0.8)], [(0.9, 0), (0.8, 0.6)]), {(0, 0): 1, (1, 1): 1}),
    "a crowd of the category is left out": (
        Image([0], [(0, 0.9), (1, 0.8)], [(0.9,), (0.9,)], crowd=[0]),
        {(NOTHING, 1): 1},
    ),
    "no image content": (Image(), {}),
    "no objects": (Image(found=[(2, 0.9)], ious=[()]), {(NOTHING, 2): 1}),
    "no detections": (Image([2, 2]), {(2, NOTHING): 2}),
}


def _counted(*images: Image, score_threshold: float) -> ConfusionMatrix:
    matrix = ConfusionMatrix(NUM_CATEGORIES, score_threshold)
    matrix.update(compared(*images))
    return matrix


def _matrix(*images: Image, score_threshold: float) -> Int64s:
    return _counted(*images, score_threshold=score_threshold).result().matrix


@pytest.mark.parametrize("name", CASES)
def test_cases(name: str) -> None:
    image, wanted = CASES[name]
    matrix = _matrix(image, score_threshold=0.3)
    assert {(int(i), int(j)): int(matrix[i, j]) for i, j in np.argwhere(matrix)} == wanted
    assert matrix.shape == (NUM_CATEGORIES + 1, NUM_CATEGORIES + 1)


@settings(max_examples=60, deadline=None)
@given(random_images())
def test_rows_are_objects_and_blocks_add_up(images: list[Image]) -> None:
    truth, found, _ = block(*images)
    matrix = _matrix(*images, score_threshold=0.5)
    objects = np.bincount(truth.categories[~truth.crowd], minlength=NUM_CATEGORIES)
    assert matrix[:-1].sum(axis=1).tolist() == objects.tolist()
    detections = np.bincount(found.categories[found.scores >= 0.5], minlength=NUM_CATEGORIES)
    assert (matrix[:, :-1].sum(axis=0) <= detections).all()
    if not truth.crowd.any():
        assert matrix[:, :-1].sum(axis=0).tolist() == detections.tolist()
    merged = ConfusionMatrix(NUM_CATEGORIES, 0.5)
    for image in images:
        merged.merge(_counted(image, score_threshold=0.5))
    assert merged.result().matrix.tolist() == matrix.tolist()
