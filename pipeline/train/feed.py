"""Training samples through Ray Data: tasks anywhere on the cluster read and augment, a worker takes batches in order.

A task gets numbers and makes what belongs there (`pipeline.train.data.draws`), so it may run anywhere, and again after
a crash, and what a worker learns from is the same. Samples travel as rows of Arrow tables, exactly.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial

import numpy as np
import pyarrow as pa
import ray
import torch
from numpy.typing import NDArray
from ray.data import DataContext
from torch import Tensor

from pipeline.cluster.quiet import quiet
from pipeline.images.sizes import padded_size
from pipeline.model.batch import Batch, Target
from pipeline.model.host_memory import keep_freed_memory
from pipeline.model.kernels.resize import normalise
from pipeline.storage.map_ahead import map_ahead
from pipeline.tables.binary import binary_array, binary_views
from pipeline.train.data.draws import Drawn, Draws, positions
from pipeline.train.data.labelled import DataError
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
        iterations_per_epoch: steps in an epoch, which all workers take together.
        batch: samples of a step of this worker.
        rank, world: this worker, and how many there are.
        cpus_per_task: that a task reserves.
        device: where the batches are made and lie.
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


# One schema, so that tables of samples with and without objects go together. Of each mask the bits within its box
# travel, row after row; ids are JSON, as sources may have numbers and texts.
_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("pixels", pa.large_binary()),
        ("boxes", pa.large_binary()),
        ("labels", pa.large_binary()),
        ("masks", pa.large_binary()),
        ("ignored", pa.large_binary()),
        ("unreadable", pa.string()),
        ("error", pa.string()),
    ]
)


def to_rows(drawn: Sequence[Drawn]) -> pa.Table:
    """A row for each. Boxes must be those of the masks, as they are after every step of the augmentation."""
    samples = [one.sample for one in drawn]
    columns = [
        pa.array([json.dumps(sample.image_id) for sample in samples], pa.string()),
        pa.array([sample.pixels.shape[0] for sample in samples], pa.int32()),
        pa.array([sample.pixels.shape[1] for sample in samples], pa.int32()),
        binary_array([sample.pixels for sample in samples]),
        binary_array([sample.boxes for sample in samples]),
        binary_array([sample.labels for sample in samples]),
        binary_array([_packed(sample) for sample in samples]),
        binary_array([sample.ignored for sample in samples]),
        pa.array([json.dumps(one.unreadable) if one.unreadable else None for one in drawn], pa.string()),
        pa.nulls(len(samples), pa.string()),
    ]
    return pa.table(columns, schema=_SCHEMA)


def error_row(error: DataError) -> pa.Table:
    """In place of samples: `from_rows` raises it where it is read."""
    return pa.table([pa.array([None if f.name != "error" else str(error)], f.type) for f in _SCHEMA], schema=_SCHEMA)


def from_rows(rows: pa.Table) -> Iterator[Drawn]:
    """What `to_rows` was given; pixels are views of the table's memory.

    Raises:
        DataError: of `error_row`.
    """
    names = ("pixels", "boxes", "labels", "masks", "ignored")
    views = zip(*(binary_views(rows[name]) for name in names), strict=True)
    others = rows.drop_columns(list(names)).to_pylist()
    for row, (pixels, *objects) in zip(others, views, strict=True):
        if row["error"] is not None:
            raise DataError(row["error"])
        size = (row["height"], row["width"])
        boxes, labels, packed, ignored = objects
        found = np.frombuffer(boxes, np.float32).reshape(-1, 4)
        sample = Sample(
            image_id=json.loads(row["image_id"]),
            pixels=np.frombuffer(pixels, np.uint8).reshape(*size, 3),
            boxes=found,
            labels=np.frombuffer(labels, np.int64),
            masks=_unpacked(np.frombuffer(packed, np.uint8), found, size),
            ignored=np.frombuffer(ignored, np.bool_),
        )
        unreadable = json.loads(row["unreadable"] or "[]")
        yield Drawn(sample, tuple((image_id, reason) for image_id, reason in unreadable))


def _packed(sample: Sample) -> NDArray[np.uint8]:
    windows = [mask[_window(box)] for mask, box in zip(sample.masks, sample.boxes, strict=True)]
    return np.concatenate([np.zeros(0, np.uint8), *(np.packbits(window) for window in windows)])


def _unpacked(packed: NDArray[np.uint8], boxes: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.bool_]:
    masks = np.zeros((len(boxes), *size), np.bool_)
    start = 0
    for mask, box in zip(masks, boxes, strict=True):
        window = mask[_window(box)]
        stop = start + -(-window.size // 8)
        window[:] = np.unpackbits(packed[start:stop], count=window.size).reshape(window.shape)
        start = stop
    return masks


def _window(box: NDArray[np.float32]) -> tuple[slice, slice]:
    left, top, right, bottom = box.astype(int).tolist()
    return slice(top, bottom), slice(left, right)


def collate(samples: Sequence[Sample], device: torch.device) -> Batch:
    """Normalise as the model does when it predicts, and pad to the smallest common multiples of 32.

    Args:
        samples: what becomes the batch, at least one.
        device: where the arithmetic runs and the batch lies.
    """
    sizes = [sample.pixels.shape[:2] for sample in samples]
    height, width = padded_size((max(size[0] for size in sizes), max(size[1] for size in sizes)))
    images = torch.zeros(len(samples), 3, height, width, device=device)
    for image, sample in zip(images, samples, strict=True):
        pixels = normalise(_tensor(sample.pixels, device).permute(2, 0, 1))
        image[:, : pixels.shape[1], : pixels.shape[2]] = pixels
    return Batch(
        image_ids=tuple(sample.image_id for sample in samples),
        images=images,
        image_sizes=torch.tensor(sizes, dtype=torch.float32, device=device),
        targets=tuple(_target(sample, device) for sample in samples),
    )


def _target(sample: Sample, device: torch.device) -> Target:
    parts = (sample.boxes, sample.labels, sample.masks, sample.ignored)
    return Target(*(_tensor(part, device) for part in parts))


def _tensor(array: np.ndarray, device: torch.device) -> Tensor:
    # "W": torch takes no read-only memory without a warning, and arrays out of an object store are read-only.
    return torch.from_numpy(np.require(array, requirements=["C", "W"])).to(device, non_blocking=True)
