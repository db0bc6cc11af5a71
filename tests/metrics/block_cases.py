"""Blocks written by hand: categories, scores and IoUs as a case wants them, without any geometry behind them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.metrics.blocks import DetectionBlock, TruthBlock
from pipeline.metrics.metric import ComparedBlock
from pipeline.metrics.overlaps import Overlaps

Case = tuple[TruthBlock, DetectionBlock, Overlaps]


@dataclass(frozen=True)
class Image:
    """One image: categories of objects, which are crowds, (category, score) of detections, IoUs [D][G]."""

    objects: Sequence[int] = ()
    found: Sequence[tuple[int, float]] = ()
    ious: Sequence[Sequence[float]] = ()
    crowd: Sequence[int] = ()  # indices


def block(*images: Image, first_order: int = 0) -> Case:
    """The block of these images, with ids 1000, 1001 ... and annotations 1, 2 ... Boxes tell all objects apart."""
    categories = np.array([c for image in images for c in image.objects], np.int64)
    found = [f for image in images for f in image.found]
    crowd = [n in image.crowd for image in images for n in range(len(image.objects))]
    orders = np.arange(first_order, first_order + len(images))
    truth = TruthBlock(
        image_ids=(1000 + orders).tolist(),
        orders=orders,
        image_sizes=np.full((len(images), 2), 100),
        offsets=_offsets([len(image.objects) for image in images]),
        ids=np.arange(1, len(categories) + 1),
        categories=categories,
        boxes=np.arange(4.0 * len(categories)).reshape(-1, 4),
        areas=np.ones(len(categories)),
        crowd=np.array(crowd, np.bool_),
        rles=None,
    )
    detections = DetectionBlock(
        offsets=_offsets([len(image.found) for image in images]),
        positions=np.array([n for image in images for n in range(len(image.found))], np.int64),
        categories=np.array([c for c, _ in found], np.int64),
        boxes=1000 + np.arange(4.0 * len(found)).reshape(-1, 4),
        scores=np.array([s for _, s in found], np.float64),
        rles=None,
    )
    pairs = [
        (int(detections.offsets[n]) + d, int(truth.offsets[n]) + g, iou)
        for n, image in enumerate(images)
        for d, row in enumerate(image.ious)
        for g, iou in enumerate(row)
        if iou > 0
    ]
    columns = np.array(pairs, np.float64).reshape(-1, 3).T
    return truth, detections, Overlaps(columns[0].astype(np.int64), columns[1].astype(np.int64), columns[2])


def compared(*images: Image, first_order: int = 0) -> ComparedBlock:
    """The same as metrics get it."""
    return ComparedBlock(*block(*images, first_order=first_order), NUM_CATEGORIES)


def with_string_ids(truth: TruthBlock) -> TruthBlock:
    """The same with ids that are text."""
    return replace(truth, image_ids=[f"image {id_}" for id_ in truth.image_ids])


def _offsets(lengths: Sequence[int]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


NUM_CATEGORIES = 3


@st.composite
def random_images(draw: st.DrawFn) -> list[Image]:
    """Up to five images of up to four objects and six detections; scores and IoUs tie often and lie on the limits."""
    images = []
    for _ in range(draw(st.integers(1, 5))):
        objects = draw(st.lists(st.integers(0, NUM_CATEGORIES - 1), max_size=4))
        score = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])
        found = draw(st.lists(st.tuples(st.integers(0, NUM_CATEGORIES - 1), score), max_size=6))
        row = st.lists(
            st.sampled_from([0.0, 0.05, 0.1, 0.3, 0.5, 0.6, 0.9, 1.0]), min_size=len(objects), max_size=len(objects)
        )
        ious = draw(st.lists(row, min_size=len(found), max_size=len(found)))
        crowd = [n for n in range(len(objects)) if draw(st.integers(0, 4)) == 0]
        images.append(Image(objects, found, ious, crowd))
    return images
