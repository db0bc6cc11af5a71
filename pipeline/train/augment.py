"""What happens to a training image before it is collated: flip, a change of scale, objects of another image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pipeline.train.copy_paste import copy_paste
from pipeline.train.sample.geometry import flip
from pipeline.train.sample.sample import Sample


@dataclass(frozen=True)
class Augment:
    """The steps, in this order. A pure function of the samples and of the state of the generator.

    Attributes:
        rescale: `ScaleJitter`, `MultiScale`, or another step that settles the size; ``None``: it stays.
        flip: probability.
        copy_paste: probability that objects of a second image are pasted.

    Raises:
        ValueError: not a probability.
    """

    rescale: Callable[[Sample, np.random.Generator], Sample] | None = None
    flip: float = 0.5
    copy_paste: float = 0.0

    def __post_init__(self) -> None:
        if not (0 <= self.flip <= 1 and 0 <= self.copy_paste <= 1):
            raise ValueError(f"flip {self.flip} and copy_paste {self.copy_paste} must be probabilities")

    def __call__(self, sample: Sample, second: Callable[[], Sample], rng: np.random.Generator) -> Sample:
        """The sample augmented.

        Args:
            sample: as read.
            second: gives the image that objects are copied from; asked only where they are.
            rng: of this sample alone, so that the order of the work changes nothing.
        """
        pastes = rng.random() < self.copy_paste
        augmented = self._transform(sample, rng)
        return copy_paste(augmented, self._transform(second(), rng), rng) if pastes else augmented

    def _transform(self, sample: Sample, rng: np.random.Generator) -> Sample:
        if rng.random() < self.flip:
            sample = flip(sample)
        return self.rescale(sample, rng) if self.rescale else sample
