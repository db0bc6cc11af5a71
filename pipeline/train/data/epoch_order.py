"""In which order the images of several sources are visited: by weight, and the same for the same seed.

Every image has a place: ``0 .. n0 - 1`` those of the first source, ``n0 .. n0 + n1 - 1`` those of the second, and
so on.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# Streams of random numbers that must not meet: orders within a source, the shuffling of all sources, and what
# happens to a single image.
_WITHIN, _ACROSS, _IMAGE = 0, 1, 2


def epoch_order(
    sizes: Sequence[int], weights: Sequence[float] | None, epoch: int, seed: int, epoch_size: int | None = None
) -> NDArray[np.int64]:
    """Places in the order in which an epoch visits them.

    Each source is gone through in a random order, then in another one, and so on; an epoch goes on where the one
    before stopped. So no image comes a second time before all others of its source came once, whatever the weights.

    Args:
        sizes: images of each source, at least 1.
        weights: shares of the sources in what is visited, in any unit; ``None``: by size, so that an epoch of the
            full size visits each image once.
        epoch: from 0.
        seed: of the run.
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
