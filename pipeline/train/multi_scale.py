"""The multi-scale pipeline that the published detectors were trained with (``mstrain_480-800`` in their names).

One of two policies with equal chances: resize the short side to one of 480, 512, ..., 800; or resize it to 400, 500 or
600, cut out a window of 384 to 600 pixels a side (``RandomCrop`` of type ``absolute_range``), and resize that to one of
480 to 800. The long side is never above 1333. Windows without an object are kept (``allow_negative_crop``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.images.sizes import scaled_size
from pipeline.train.sample.geometry import resize, window
from pipeline.train.sample.sample import Sample


@dataclass(frozen=True)
class MultiScale:
    """The step. All lengths in pixels.

    Attributes:
        short_sides: of what comes out.
        long_side: upper limit.
        crop_short_sides: before a window is cut out.
        crop_range: smallest and largest side of the window.
    """

    short_sides: tuple[int, ...] = tuple(range(480, 801, 32))
    long_side: int = 1333
    crop_short_sides: tuple[int, ...] = (400, 500, 600)
    crop_range: tuple[int, int] = (384, 600)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """The sample resized, and perhaps cut before."""
        if rng.random() < 0.5:
            sample = self._cut(self._resize(sample, self.crop_short_sides, rng), rng)
        return self._resize(sample, self.short_sides, rng)

    def _resize(self, sample: Sample, short_sides: tuple[int, ...], rng: np.random.Generator) -> Sample:
        short_side = short_sides[rng.integers(len(short_sides))]
        return resize(sample, scaled_size(sample.pixels.shape[:2], short_side, self.long_side))

    def _cut(self, sample: Sample, rng: np.random.Generator) -> Sample:
        extents = sample.pixels.shape[:2]
        low, high = self.crop_range
        height, width = (int(rng.integers(min(extent, low), min(extent, high) + 1)) for extent in extents)
        top, left = (int(rng.integers(0, e - side + 1)) for e, side in zip(extents, (height, width), strict=True))
        return window(sample, top, left, (height, width))
