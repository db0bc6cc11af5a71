"""What happens to a training image before it is collated: flip, a change of scale, objects of another image.

Ghiasi et al., Simple Copy-Paste is a Strong Data Augmentation Method (2021), is the source of two of the steps. All of
them are pure functions of the samples and of the state of the generator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, Strict, model_validator

from pipeline.config.base import PositiveFloat, PositiveInt, Score, Section
from pipeline.images.sizes import scaled_size
from pipeline.train.sample.geometry import flip, resize, window, with_masks
from pipeline.train.sample.sample import Sample


class AugmentConfig(Section):
    """What happens to a picture before it is learnt from."""

    scale: Literal["multi_scale", "large_scale_jitter", "none"] = Field(
        default="multi_scale",
        description="multi_scale: as the published models were trained (short side 480 to 800 pixels, perhaps cut "
        "before). large_scale_jitter: scaled to 0.1 to 2 times a square and cut to it. none: the picture's own size.",
    )
    side: PositiveInt = Field(default=1024, description="Side of the square of large_scale_jitter, in pixels.")
    scale_range: Annotated[tuple[PositiveFloat, PositiveFloat], Strict(False)] = Field(
        default=(0.1, 2.0), description="Smallest and largest scale of large_scale_jitter."
    )
    flip: Score = Field(default=0.5, description="Chance that left and right are swapped.")
    copy_paste: Score = Field(default=0.0, description="Chance that objects of another image are pasted in.")

    @model_validator(mode="after")
    def _makes_sense(self) -> AugmentConfig:
        self.rescale()
        return self

    def rescale(self) -> MultiScale | ScaleJitter | None:
        """The step that settles the size; ``None``: it stays.

        Raises:
            ValueError: there is no such step.
        """
        if self.scale == "large_scale_jitter":
            return ScaleJitter(self.side, *self.scale_range)
        return MultiScale() if self.scale == "multi_scale" else None

    def __call__(self, sample: Sample, second: Callable[[], Sample], rng: np.random.Generator) -> Sample:
        """The sample augmented.

        Args:
            sample: an image as it was read.
            second: gives the image that objects are copied from; asked only where they are.
            rng: of this sample alone, so that the order of the work changes nothing.
        """
        pastes = rng.random() < self.copy_paste
        augmented = self._transform(sample, rng)
        return copy_paste(augmented, self._transform(second(), rng), rng) if pastes else augmented

    def _transform(self, sample: Sample, rng: np.random.Generator) -> Sample:
        if rng.random() < self.flip:
            sample = flip(sample)
        rescale = self.rescale()
        return rescale(sample, rng) if rescale else sample


@dataclass(frozen=True)
class MultiScale:
    """The multi-scale pipeline of the published detectors (``mstrain_480-800`` in their names). Lengths in pixels.

    One of two policies with equal chances: resize the short side to one of 480, 512, ..., 800; or resize it to 400,
    500 or 600, cut out a window of 384 to 600 pixels a side (``RandomCrop`` of type ``absolute_range``), and resize
    that to one of 480 to 800. The long side is never above 1333. Windows without an object are kept
    (``allow_negative_crop``).

    Attributes:
        short_sides: lengths of the short side that come out, one of them chosen at random.
        long_side: the most that the long side may have; the short one gives way.
        crop_short_sides: lengths of the short side before a window is cut out.
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


@dataclass(frozen=True)
class ScaleJitter:
    """Large-scale jitter (Ghiasi et al. 2021, section 3).

    The image is brought to a size between a tenth and twice the output, and a square cut out at random; where it is
    smaller than the square, it lies in the upper left corner on the padding's colour.

    Attributes:
        side: of the square that comes out, in pixels.
        low, high: the image's long side is brought to a uniform multiple of ``side`` between them.

    Raises:
        ValueError: no such square or range.
    """

    side: int
    low: float
    high: float

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


def copy_paste(sample: Sample, source: Sample, rng: np.random.Generator) -> Sample:
    """Paste a random subset of another image's objects over this image, where they lie there (Ghiasi et al. 2021).

    Without the blending of edges, which the paper finds to make no difference.

    Any number of objects is as likely as any other, none included. Pasted objects hide what is behind them:
    masks lose the hidden pixels, boxes shrink with them, and objects that vanish are dropped. Ignored objects
    of the source are never pasted; what of them lies within a pasted object comes with it as pixels only.

    Args:
        sample: pasted onto; its objects come first in the result.
        source: pasted from; cut or extended to the sample's size at its upper left corner.
        rng: chooses the objects.
    """
    height, width = sample.pixels.shape[:2]
    if source.pixels.shape[:2] != (height, width):
        source = window(source, 0, 0, (height, width))
    candidates = np.flatnonzero(~source.ignored)
    chosen = np.sort(rng.permutation(candidates)[: rng.integers(0, len(candidates) + 1)])
    pasted = source.masks[chosen]
    front = pasted.any(axis=0)
    together = Sample(
        image_id=sample.image_id,
        pixels=sample.pixels,
        boxes=np.concatenate([sample.boxes, source.boxes[chosen]]),
        labels=np.concatenate([sample.labels, source.labels[chosen]]),
        masks=np.concatenate([sample.masks & ~front, pasted]),
        ignored=np.concatenate([sample.ignored, source.ignored[chosen]]),
    )
    return with_masks(together, np.where(front[..., None], source.pixels, sample.pixels), together.masks)
