"""Which sample comes at which place of an epoch: a pure function, so any process can make any sample, in any order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pipeline.annotations.pictures import PictureSource
from pipeline.train.augment import AugmentConfig
from pipeline.train.data.labelled import DataError, LabelledImage, load_sample
from pipeline.train.sample.sample import Sample

# So many in a row mean that the storage is gone, or the image root wrong.
MAX_UNREADABLE_IN_A_ROW = 50
# Streams of random numbers that must not meet: orders within a source, the shuffling of all sources, and what
# happens to a single image.
_WITHIN, _ACROSS, _IMAGE = 0, 1, 2


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
        weights, epoch_size: shares of the sources, and images in an epoch, as `epoch_order` takes them.
        pictures: fetches and decodes the images.
        augment: what happens to them.
        seed: what all that is random is made of.
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


def epoch_order(
    sizes: Sequence[int], weights: Sequence[float] | None, epoch: int, seed: int, epoch_size: int | None = None
) -> NDArray[np.int64]:
    """Places in the order in which an epoch visits them.

    ``0 .. n0 - 1`` are the places of the first source's images, ``n0 .. n0 + n1 - 1`` those of the second's, and so on.
    Each source is gone through in a random order, then in another one, and so on; an epoch goes on where the one
    before stopped. So no image comes a second time before all others of its source came once, whatever the weights.

    Args:
        sizes: images of each source, at least 1.
        weights: shares of the sources in what is visited, in any unit; ``None``: by size, so that an epoch of the
            full size visits each image once.
        epoch: number of the epoch, from 0.
        seed: decides the orders, together with the source and the pass over it.
        epoch_size: images visited; ``None``: as many as there are.

    Raises:
        ValueError: an empty source, or weights that are no positive numbers, one for each source.
    """
    shares = np.array(sizes if weights is None else weights, np.float64)
    if not sizes or min(sizes) < 1:
        raise ValueError(f"every source of training data needs images; they have {list(sizes)}")
    if len(shares) != len(sizes) or not (np.isfinite(shares) & (shares > 0)).all():
        raise ValueError(f"{len(sizes)} sources need as many positive weights, not {list(weights or ())}")
    total = sum(sizes) if epoch_size is None else epoch_size
    firsts = np.cumsum([0, *sizes[:-1]])
    drawn = [
        first + _draws(source, size, epoch * count, (epoch + 1) * count, seed)
        for source, (first, size, count) in enumerate(zip(firsts, sizes, _counts(total, shares), strict=True))
    ]
    return np.random.default_rng((seed, _ACROSS, epoch)).permutation(np.concatenate(drawn))


def image_rng(seed: int, epoch: int, position: int) -> np.random.Generator:
    """For what happens to the image at a position of an epoch's order: the same however many workers there are."""
    return np.random.default_rng((seed, _IMAGE, epoch, position))


def _counts(total: int, shares: NDArray[np.float64]) -> list[int]:
    """``total`` split by shares, largest remainders first; each source at least once."""
    exact = total * shares / shares.sum()
    counts = np.floor(exact).astype(np.int64)
    counts[np.argsort(counts - exact, kind="stable")[: total - counts.sum()]] += 1
    return np.maximum(counts, 1).tolist()


def _draws(source: int, size: int, start: int, stop: int, seed: int) -> NDArray[np.int64]:
    """Draws ``start`` to ``stop`` of the endless row of random orders of one source."""
    rounds = range(start // size, (stop - 1) // size + 1)
    orders = [np.random.default_rng((seed, _WITHIN, source, r)).permutation(size) for r in rounds]
    return np.concatenate(orders)[start - rounds.start * size : stop - rounds.start * size]
