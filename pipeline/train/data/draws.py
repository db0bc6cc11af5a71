"""Which sample comes at which place of an epoch: a pure function, so any process can make any sample, in any order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pipeline.annotations.pictures import PictureSource
from pipeline.train.augment import AugmentConfig
from pipeline.train.data.epoch_order import epoch_order, image_rng
from pipeline.train.data.labelled import DataError, LabelledImage
from pipeline.train.data.loading import load_sample
from pipeline.train.sample.sample import Sample

# So many in a row mean that the storage is gone, or the image root wrong.
MAX_UNREADABLE_IN_A_ROW = 50


@dataclass(frozen=True)
class Drawn:
    """An augmented sample, and the ids and reasons of the images that could not be read in its place."""

    sample: Sample
    unreadable: tuple[tuple[int | str, str], ...] = ()


@dataclass(frozen=True)
class Draws:
    """Samples of a run. What is at a position depends on the seed, the epoch and the position, and on nothing else.

    An image that cannot be read is replaced by the next one of its source.

    Attributes:
        sources: images of each source.
        weights, epoch_size: see `epoch_order`.
        pictures: reads them.
        augment: what happens to them.
        seed: of the run.
    """

    sources: Sequence[Sequence[LabelledImage]]
    weights: tuple[float, ...] | None
    pictures: PictureSource
    augment: AugmentConfig
    seed: int
    epoch_size: int | None = None

    def steps_of(self, step_size: int) -> int:
        """Steps of an epoch when all workers together take this many samples in each, at least 1."""
        return -(-len(self._order(0)) // step_size)

    def draw(self, epoch: int, position: int) -> Drawn:
        """The sample at a position of an epoch. Positions beyond its end fill up the last step, from its start.

        Raises:
            DataError: no image of a source, or too many in a row, can be read; a picture has another size than
                its annotations.
        """
        order, rng = self._order(epoch), image_rng(self.seed, epoch, position)
        unreadable: dict[int | str, str] = {}
        sample = self._read(int(order[position % len(order)]), unreadable)

        def second() -> Sample:
            return self._read(int(order[rng.integers(len(order))]), unreadable)

        return Drawn(self.augment(sample, second, rng), tuple(unreadable.items()))

    def _order(self, epoch: int) -> NDArray[np.int64]:
        sizes = tuple(len(source) for source in self.sources)
        return _cached_order(sizes, self.weights, epoch, self.seed, self.epoch_size)

    def _read(self, place: int, unreadable: dict[int | str, str]) -> Sample:
        """The sample at a place, or the first after it in its source that can be read."""
        source = 0
        while place >= len(self.sources[source]):
            place -= len(self.sources[source])
            source += 1
        images = self.sources[source]
        reason = ""
        tries = min(len(images), MAX_UNREADABLE_IN_A_ROW)
        for shift in range(tries):
            image = images[(place + shift) % len(images)]
            sample = load_sample(image, self.pictures)
            if isinstance(sample, Sample):
                return sample
            reason = unreadable[image.image_id] = sample.message
        raise DataError(
            f"source {source + 1}: {tries} images in a row cannot be read, the last one because: {reason}; "
            "is the image root right, and the storage within reach?"
        )


@lru_cache(maxsize=2)
def _cached_order(
    sizes: tuple[int, ...], weights: tuple[float, ...] | None, epoch: int, seed: int, epoch_size: int | None
) -> NDArray[np.int64]:
    return epoch_order(sizes, weights, epoch, seed, epoch_size)


def positions(first: int, last: int, batch: int, rank: int, world: int) -> NDArray[np.int64]:
    """The positions that a worker takes in the steps ``first`` to ``last - 1`` of an epoch, in their order.

    All workers' batches of a step are consecutive, so two workers see together what one with twice the batch sees.

    Raises:
        ValueError: not a batch size, or not a worker.
    """
    if batch < 1 or not 0 <= rank < world:
        raise ValueError(f"no batches of {batch} for worker {rank} of {world}")
    starts = (np.arange(first, last) * world + rank) * batch
    return (starts[:, None] + np.arange(batch)).ravel()
