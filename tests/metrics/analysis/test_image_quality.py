"""Panoptic quality of images by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings

from pipeline.metrics.analysis.image_quality import QUALITY, Qualities, block_qualities
from pipeline.metrics.analysis.outcomes import judge
from tests.metrics.block_cases import NUM_CATEGORIES, Image, block, random_images, with_string_ids


def _qualities(*images: Image, score_threshold: float = 0.5, first_order: int = 0) -> Qualities:
    truth, found, overlaps = block(*images, first_order=first_order)
    judgement = judge(truth, found, overlaps)
    return block_qualities(truth, found, judgement, NUM_CATEGORIES, score_threshold)


def test_by_hand() -> None:
    """Category 0: two matched, one wrong, one missed; category 1: one missed; category 2: one wrong."""
    detections = [(0, 0.9), (0, 0.8), (0, 0.7), (2, 0.6), (1, 0.4)]
    ious = [(0.8, 0, 0, 0), (0, 0.6, 0, 0), (0, 0, 0, 0), (0, 0, 0, 0), (0, 0, 0, 1.0)]
    rows = _qualities(Image(), Image([0, 0, 0, 1], detections, ious))
    assert rows["category"].tolist() == [0, 1, 2]
    assert rows["quality"] == pytest.approx([1.4 / 3, 0, 0])
    assert rows["num_true"].tolist() == [2, 0, 0]
    assert rows["num_false"].tolist() == [1, 0, 1]
    assert rows["num_missed"].tolist() == [1, 1, 0]
    assert rows["image_order"].tolist() == [1, 1, 1]
    assert rows["image_id"].tolist() == [1001, 1001, 1001]


def test_crowds_do_not_count() -> None:
    assert len(_qualities(Image([0], [(0, 0.9)], [(0.9,)], crowd=[0]))) == 0
    assert len(_qualities(Image())) == len(_qualities()) == 0


def test_ids_of_text() -> None:
    truth, found, overlaps = block(Image([0]))
    judgement = judge(truth, found, overlaps)
    rows = block_qualities(with_string_ids(truth), found, judgement, NUM_CATEGORIES, 0.5)
    assert rows["image_id"].tolist() == ["image 1000"]


@settings(max_examples=60, deadline=None)
@given(random_images())
def test_counts_add_up_and_lower_scores_do_not_matter(images: list[Image]) -> None:
    rows = _qualities(*images)
    assert rows.dtype == QUALITY
    assert ((rows["quality"] >= 0) & (rows["quality"] <= 1)).all()
    truth, _, _ = block(*images)
    assert (rows["num_true"] + rows["num_missed"]).sum() == (~truth.crowd).sum()
    parts = [_qualities(image, first_order=n) for n, image in enumerate(images)]
    assert np.concatenate(parts).tolist() == rows.tolist()
    kept = [[n for n, (_, score) in enumerate(image.found) if score >= 0.5] for image in images]
    alone = [
        Image(image.objects, [image.found[n] for n in good], [image.ious[n] for n in good], image.crowd)
        for image, good in zip(images, kept, strict=True)
    ]
    assert _qualities(*alone).tolist() == rows.tolist()
