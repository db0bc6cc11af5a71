"""Large-scale jitter: Ghiasi et al., Simple Copy-Paste is a Strong Data Augmentation Method (2021), section 3.

The image is brought to a size between a tenth and twice the output, and a square cut out at random; where it is
smaller than the square, it lies in the upper left corner on the padding's colour.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.images.sizes import scaled_size
from pipeline.train.sample.geometry import resize, window
from pipeline.train.sample.sample import Sample


@dataclass(frozen=True)
class ScaleJitter:
    """The step.

    Attributes:
        side: of the square that comes out, in pixels.
        low, high: the image's long side is brought to a uniform multiple of ``side`` between them.

    Raises:
        ValueError: no such square or range.
    """

    side: int
    low: float = 0.1
    high: float = 2.0

    def __post_init__(self) -> None:
        if self.side < 1 or not 0 < self.low <= self.high:
            raise ValueError(f"a side of {self.side} pixels and scales from {self.low} to {self.high} make no sense")

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """A sample of ``(side, side)`` pixels."""
        side = self.side
        longest = max(1, round(side * rng.uniform(self.low, self.high)))
        resized = resize(sample, scaled_size(sample.pixels.shape[:2], longest, longest))
        height, width = resized.pixels.shape[:2]
        top, left = (int(rng.integers(0, max(0, extent - side) + 1)) for extent in (height, width))
        return window(resized, top, left, (side, side))
