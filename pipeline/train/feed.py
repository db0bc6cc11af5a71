"""Training samples through Ray Data: tasks anywhere on the cluster read and augment, a worker takes batches in order.

A task gets numbers and makes what belongs there (`pipeline.train.data.draws`), so it may run anywhere, and again after
a crash, and what a worker learns from is the same.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache, partial

import pyarrow as pa
import ray
import torch
from ray.data import DataContext

from pipeline.cluster.quiet import quiet
from pipeline.model.batch import Batch
from pipeline.model.host_memory import keep_freed_memory
from pipeline.storage.map_ahead import map_ahead
from pipeline.train.data.draws import Draws, positions
from pipeline.train.data.labelled import DataError
from pipeline.train.data.sample_rows import error_row, from_rows, to_rows
from pipeline.train.sample.collate import collate
from pipeline.train.sample.sample import Sample

logger = logging.getLogger(__name__)

# Of one task: enough to be worth its launch, few enough that samples of 1024 x 1024 pixels fit into a block.
_SAMPLES_PER_TASK = 16
_BATCHES_AHEAD = 2
# Of a task: pictures from object storage are waited for together.
_THREADS = 8


@dataclass(frozen=True)
class Feed:
    """A `pipeline.train.loop.loop.TrainingData`: the batches of one worker.

    Attributes:
        draws: reference to the run's `Draws`, shared by all workers and tasks.
        iterations_per_epoch: of all workers.
        batch: samples of a step of this worker.
        rank, world: this worker, and how many there are.
        cpus_per_task: that a task reserves.
        device: where batches lie.
        unreadable: images that could not be read so far, and why.
    """

    draws: ray.ObjectRef
    iterations_per_epoch: int
    batch: int
    rank: int
    world: int
    cpus_per_task: float
    device: torch.device
    unreadable: dict[int | str, str] = field(default_factory=dict)

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        """Those of an epoch from iteration ``start`` of it on.

        Raises:
            DataError: see `Draws.draw`.
        """
        wanted = positions(start, self.iterations_per_epoch, self.batch, self.rank, self.world)
        size = self.batch * max(1, _SAMPLES_PER_TASK // self.batch)
        # from_items, as from_arrow would look at its blocks in tasks of one CPU, which may not be free.
        parts = [{"positions": wanted[at : at + size].tolist()} for at in range(0, len(wanted), size)]
        make = partial(_make, epoch=epoch, draws=self.draws)
        dataset = ray.data.from_items(parts, override_num_blocks=len(parts)).map_batches(
            make, batch_size=None, batch_format="pyarrow", num_cpus=self.cpus_per_task, zero_copy_batch=True
        )
        _configure(dataset.context)
        tables = dataset.iter_batches(
            batch_size=self.batch, batch_format="pyarrow", prefetch_batches=_BATCHES_AHEAD, drop_last=False
        )
        for table in tables:
            yield collate(list(self._samples(table)), self.device)

    def _samples(self, table: pa.Table) -> Iterator[Sample]:
        for drawn in from_rows(table):
            for image_id, reason in drawn.unreadable:
                if image_id not in self.unreadable:
                    logger.warning("image %r is skipped: %s", image_id, reason)
                self.unreadable[image_id] = reason
            yield drawn.sample


def _configure(context: DataContext) -> None:
    quiet(context)
    context.execution_options.preserve_order = True
    context.execution_no_progress_timeout_s = -1  # a long validation takes nothing from the feed


def _make(rows: pa.Table, epoch: int, draws: ray.ObjectRef) -> pa.Table:
    keep_freed_memory()
    of_run = _resolved(draws)
    places = [position for part in rows["positions"].to_pylist() for position in part]
    try:
        return to_rows(list(map_ahead(partial(of_run.draw, epoch), places, _THREADS, len(places))))
    except DataError as error:
        # As data: Ray would wrap it so that nobody finds the message, and stop other workers first.
        return error_row(error)


@lru_cache(maxsize=1)
def _resolved(draws: ray.ObjectRef) -> Draws:
    found: Draws = ray.get(draws)
    return found
