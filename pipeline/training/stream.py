"""Labelled images -> batches of augmented samples, read ahead by threads: training data without Ray."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pipeline.data.map_ahead import map_ahead
from pipeline.pictures import PictureSource
from pipeline.training.augment import Augment
from pipeline.training.labelled import DataError, LabelledImage
from pipeline.training.loading import load_sample
from pipeline.training.mix import deal, epoch_order, image_rng
from pipeline.training.samples import Sample

# So many in a row mean that the storage is gone, or the image root wrong.
MAX_UNREADABLE_IN_A_ROW = 50

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SampleStream:
    """Batches of one worker. What is in a batch depends on the seed, the epoch and the step, and on nothing else.

    An image that cannot be read is replaced by the next one of its source, and counted.

    Attributes:
        sources: images of each source.
        weights: see `epoch_order`.
        pictures: reads them.
        augment: what happens to them.
        batch: images of a step of this worker.
        seed: of the run.
        rank, world: this worker, and how many there are.
        epoch_size: see `epoch_order`.
        num_threads: that read ahead.
        unreadable: filled as images fail: image id to reason.
    """

    sources: Sequence[Sequence[LabelledImage]]
    weights: Sequence[float] | None
    pictures: PictureSource
    augment: Augment
    batch: int
    seed: int
    rank: int = 0
    world: int = 1
    epoch_size: int | None = None
    num_threads: int = 2
    unreadable: dict[int | str, str] = field(default_factory=dict)

    @cached_property
    def num_steps(self) -> int:
        """The same for all epochs and workers, at least 1."""
        return len(self._plan(0)[0])

    def epoch(self, epoch: int, start: int = 0) -> Iterator[list[Sample]]:
        """The batches of an epoch from step ``start`` of it on, each ``batch`` samples.

        Raises:
            DataError: no image of a source, or too many in a row, can be read; a picture has another size than
                its annotations.
        """
        steps, order = self._plan(epoch)
        jobs = [
            (int(place), (epoch, (step * self.world + self.rank) * self.batch + at), order)
            for step in range(start, len(steps))
            for at, place in enumerate(steps[step])
        ]
        waiting: list[Sample] = []
        for sample in map_ahead(lambda job: self._augmented(*job), jobs, self.num_threads, 2 * self.batch):
            waiting.append(sample)
            if len(waiting) == self.batch:
                yield waiting
                waiting = []

    def _plan(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """This worker's places by step, and those of all workers in their order."""
        sizes = [len(source) for source in self.sources]
        order = epoch_order(sizes, self.weights, epoch, self.seed, self.epoch_size)
        return deal(order, self.batch, self.rank, self.world), order

    def _augmented(self, place: int, position: tuple[int, int], order: NDArray[np.int64]) -> Sample:
        rng = image_rng(self.seed, *position)
        sample = self._read(place)
        return self.augment(sample, lambda: self._read(int(order[rng.integers(len(order))])), rng)

    def _read(self, place: int) -> Sample:
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
            reason = sample.message
            if image.image_id not in self.unreadable:
                logger.warning("image %r is skipped: %s", image.image_id, reason)
            self.unreadable[image.image_id] = reason
        raise DataError(
            f"source {source + 1}: {tries} images in a row cannot be read, the last one because: {reason}; "
            "is the image root right, and the storage within reach?"
        )
