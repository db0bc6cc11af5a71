"""A training small enough for a test: random pictures with rectangles, a detector of a few thousand weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

import testing.small_model
from pipeline.model.batch import Batch
from pipeline.model.cascade_mask_rcnn.network import initialise
from pipeline.model.categories import Category
from pipeline.model.settings import TestSettings
from pipeline.train.feed import collate
from pipeline.train.loop.start import Start, start_from
from pipeline.train.sample.sample import Sample

TINY = replace(testing.small_model.TINY, depths=(1, 1, 2, 1), num_classes=2)
CATEGORIES = (Category(4, "box"), Category(9, "bar"))
SETTINGS = TestSettings(short_side=64, long_side=64, proposals_per_level=50, proposals=40, max_detections=10)
CPU = torch.device("cpu")


def tiny_start(drop_path_rate: float = 0.2) -> Start:
    start = start_from(None, TINY, CATEGORIES, drop_path_rate, seed=3)
    initialise(start.detector, 3)
    return Start(start.detector, start.categories, SETTINGS, start.source)


def scene(number: int, side: int = 64) -> Sample:
    """One to three bright rectangles on noise."""
    rng = np.random.default_rng(number)
    pixels = rng.integers(0, 90, (side, side, 3), np.uint8)
    boxes, masks = [], []
    for _ in range(rng.integers(1, 4)):
        width, height = rng.integers(12, 40, 2)
        left, top = rng.integers(0, side - width + 1), rng.integers(0, side - height + 1)
        mask = np.zeros((side, side), np.bool_)
        mask[top : top + height, left : left + width] = True
        pixels[mask] = rng.integers(150, 255, 3, np.uint8)
        boxes.append([left, top, left + width, top + height])
        masks.append(mask)
    labels = rng.integers(0, 2, len(boxes))
    return Sample(number, pixels, np.array(boxes, np.float32), labels, np.array(masks), np.zeros(len(boxes), np.bool_))


@dataclass(frozen=True)
class Scenes:
    """A `pipeline.train.loop.loop.TrainingData`."""

    iterations_per_epoch: int = 4
    batch: int = 2

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        for iteration in range(start, self.iterations_per_epoch):
            first = (epoch * self.iterations_per_epoch + iteration) * self.batch
            yield collate([scene(first + i) for i in range(self.batch)], CPU)


VALIDATION = [scene(1000 + number) for number in range(3)]
