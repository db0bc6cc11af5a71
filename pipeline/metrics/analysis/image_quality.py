"""How well each image came out, category by category: which ones are worth looking at.

The measure is panoptic quality (Kirillov et al., "Panoptic Segmentation", CVPR 2019) of one image and category: the sum
of the IoUs of the true positives over (true positives + half the false ones + half the objects not found), for
detections from a score on. 1 is perfect, 0 nothing right.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.metrics.analysis.outcomes import Judgement, Outcome
from pipeline.metrics.blocks import DetectionBlock, TruthBlock
from pipeline.tables.ragged import image_indices

# One image and category: ``image_order`` is `TruthBlock.orders`, ``image_id`` int or str.
QUALITY = np.dtype(
    [
        ("category", np.int64),
        ("image_order", np.int64),
        ("image_id", object),
        ("quality", np.float64),
        ("num_true", np.int64),
        ("num_false", np.int64),
        ("num_missed", np.int64),
    ]
)
Qualities = NDArray[np.void]


def block_qualities(
    truth: TruthBlock, detections: DetectionBlock, judgement: Judgement, num_categories: int, score_threshold: float
) -> Qualities:
    """Rate a block.

    A match does not depend on detections of lower scores, so the matches of the judgement are those that the
    detections from the threshold on would have alone. Ignored ones do not count.

    Args:
        truth: objects of N images.
        detections: on the same images.
        judgement: what became of their detections and objects.
        num_categories: K, of the ground truth.
        score_threshold: lower scores are left out.

    Returns:
        [n] `QUALITY`, for every image and category with an object or a detection that counts, by image and category.
    """
    kept = detections.scores >= score_threshold
    true = kept & (judgement.outcomes == Outcome.TRUE_POSITIVE)
    false = kept & ~true & (judgement.outcomes < Outcome.MISSED)
    cells_detected = image_indices(detections.offsets) * num_categories + detections.categories
    cells_truth = (image_indices(truth.offsets) * num_categories + truth.categories)[~truth.crowd]
    cells, index = np.unique(
        np.concatenate([cells_truth, cells_detected[true], cells_detected[false]]), return_inverse=True
    )
    stops = np.cumsum([len(cells_truth), true.sum()])
    of_object, of_true, of_false = np.split(index, stops)

    rows = np.empty(len(cells), QUALITY)
    images, rows["category"] = np.divmod(cells, num_categories)
    rows["image_order"] = truth.orders[images]
    rows["image_id"] = np.array(truth.image_ids, object)[images]
    rows["num_true"] = np.bincount(of_true, minlength=len(cells))
    rows["num_false"] = np.bincount(of_false, minlength=len(cells))
    rows["num_missed"] = np.bincount(of_object, minlength=len(cells)) - rows["num_true"]
    ious = np.bincount(of_true, judgement.partners.ious[true], minlength=len(cells))
    rows["quality"] = ious / (rows["num_true"] + (rows["num_false"] + rows["num_missed"]) / 2)
    return rows
