"""What COCO's evaluation measures at: the constants of ``pycocotools.cocoeval.Params``, to the last bit.

Legend of the array axes, here and in the modules that use it: ``T`` IoU thresholds, ``R`` recall thresholds,
``K`` categories in the order of their ids, ``A`` ranges of the object's area, ``M`` limits of detections.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipeline.tables.arrays import Float64s

IouType = Literal["bbox", "segm"]
IOU_TYPES: tuple[IouType, ...] = ("bbox", "segm")

# linspace and not multiples of 0.05: some of those differ in the last bit, and an IoU can fall in between.
IOU_THRESHOLDS: Float64s = np.linspace(0.5, 0.95, 10)
RECALL_THRESHOLDS: Float64s = np.linspace(0.0, 1.0, 101)

AREA_NAMES = ("all", "small", "medium", "large")
# Square pixels, both ends belong to the range.
AREA_RANGES: Float64s = np.array([[0, 1e10], [0, 32.0**2], [32.0**2, 96.0**2], [96.0**2, 1e10]])

COCO_MAX_DETS = (1, 10, 100)


@dataclass(frozen=True)
class CocoProtocol:
    """The part of the protocol that people vary.

    Attributes:
        max_dets: three ascending limits of the detections of one category on one image, best scores first.

    Raises:
        ValueError: not three ascending positive numbers.
    """

    max_dets: tuple[int, int, int] = COCO_MAX_DETS

    def __post_init__(self) -> None:
        if len(self.max_dets) != 3 or sorted(set(self.max_dets)) != list(self.max_dets) or self.max_dets[0] < 1:
            raise ValueError(f"max_dets must be three ascending positive numbers, not {self.max_dets}")
        if self.max_dets[-1] > np.iinfo(np.uint16).max:
            raise ValueError(f"max_dets must be at most {np.iinfo(np.uint16).max}, not {self.max_dets[-1]}")
