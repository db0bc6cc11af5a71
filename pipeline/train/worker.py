"""What each worker of Ray Train does: the loop, on its part of the data."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import ray
import torch
from ray.train import get_context
from ray.train.torch import get_device

from pipeline.cluster.worker_log import tell
from pipeline.model.host_memory import keep_freed_memory
from pipeline.train.config import TrainConfig
from pipeline.train.distributed import gather_to_first
from pipeline.train.feed import Feed
from pipeline.train.loop.checkpoint_folder import CheckpointFolder, Position
from pipeline.train.loop.loop import train

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """What the workers came to: where training ended, and the images that could not be read, with reasons."""

    position: Position
    unreadable: dict[int | str, str]

    @classmethod
    def of_listener(cls, ended: tuple[dict[str, Any], dict[int | str, str]]) -> Result:
        """From what the first worker left there."""
        position, unreadable = ended
        return cls(Position(**position), unreadable)


@dataclass(frozen=True)
class Work:
    """The same for all workers. What is large is a reference.

    Attributes:
        record: what the run was started with, kept in ``last``.
        iterations_per_epoch: steps in an epoch, which all workers take together.
        draws: reference to a `pipeline.train.data.draws.Draws`.
        validation: reference to a `pipeline.train.inputs.ValidationImages`, or to ``None``.
        start: reference to a `pipeline.train.loop.start.Start`.
        listener: what worker 0 says goes there.
        folder: of the driver; relative paths are meant from there.
        fence: raises where this run may not write any more.
    """

    config: TrainConfig
    record: Mapping[str, Any]
    iterations_per_epoch: int
    draws: ray.ObjectRef
    validation: ray.ObjectRef
    start: ray.ObjectRef
    listener: Any
    folder: str
    fence: Callable[[], None]

    def __call__(self) -> None:
        """Train, in a process that Ray Train started."""
        config, context, device = self.config, get_context(), get_device()
        # Ray Train changes to a folder of its own.
        with suppress(OSError):
            os.chdir(self.folder)
        torch.set_num_threads(math.ceil(config.resources.cpus_per_worker))
        if device.type == "cpu":
            keep_freed_memory()
        rank = context.get_world_rank()
        tell(self.listener, "pipeline", logging.INFO if rank == 0 else logging.WARNING)
        feed = Feed(
            draws=self.draws,
            iterations_per_epoch=self.iterations_per_epoch,
            batch=config.data.batch_size,
            rank=rank,
            world=context.get_world_size(),
            cpus_per_task=config.resources.data_cpus_per_task,
            device=device,
        )
        logger.info("the worker is up on %s and takes over the weights", device)
        position = train(
            ray.get(self.start),
            feed,
            ray.get(self.validation),
            CheckpointFolder(config.output.uri, self.fence),
            config,
            device,
            record=self.record,
            save_every=config.output.save_every,
            curves_uri=config.output.uri,
        )
        unreadable = gather_to_first(feed.unreadable)
        if unreadable is not None:
            merged = {image_id: reason for part in unreadable for image_id, reason in part.items()}
            ray.get(self.listener.end.remote((asdict(position), merged)))
