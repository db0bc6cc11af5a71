"""The actor that holds one replica of the model. Apart from `graph`, which every worker imports."""

from __future__ import annotations

import logging
import os
from contextlib import suppress

import pyarrow as pa
import ray
import torch
from ray.exceptions import RayError

from pipeline.annotate.config import ModelConfig
from pipeline.annotate.monitor import MonitorClient
from pipeline.annotate.pool import Pool
from pipeline.annotate.replica_time import ReplicaClock
from pipeline.annotate.stages.segment import Segment
from pipeline.model.device import DeviceLost
from pipeline.model.predictor import load_model
from pipeline.model.settings import TestSettings
from pipeline.model.speed import SpeedOptions
from pipeline.tables.packed import packed, unpacked

logger = logging.getLogger(__name__)


class SegmentActor:
    """The segment stage in an actor of Ray Data's pool.

    Args:
        checkpoint: the model, in the object store.
        config: how it is run.
        settings: its own, completed by the config.
        pool: says what this replica gets.
        client: the replica's guard and report.
    """

    def __init__(
        self, checkpoint: ray.ObjectRef, config: ModelConfig, settings: TestSettings, pool: Pool, client: MonitorClient
    ) -> None:
        device = "cuda" if pool.gpus else "cpu"
        if device == "cpu":
            torch.set_num_threads(max(1, round(pool.cpus)))
        else:
            use_expandable_segments()
        speed = SpeedOptions(
            compile=config.compile, compile_cache=config.compile_folder, cuda_graphs=config.cuda_graphs
        )
        self._clock = ReplicaClock(str(ray.get_runtime_context().get_actor_id()), _accelerator(device), pool.gpus)
        self._client = client
        client.follow(self._clock)
        predictor = load_model(ray.get(checkpoint), device, config.precision, settings, speed=speed)
        self._clock.loaded()
        thresholds = config.label_thresholds([c.name for c in predictor.categories])
        self._stage = Segment(predictor, config.batch_size, thresholds, client, client.report, config.call_timeout_s)

    def __call__(self, block: pa.Table) -> pa.Table:
        """Decoded rows to segmented rows, both packed."""
        try:
            rows = unpacked(block)
            with self._clock.working(len(rows)):
                return packed(self._stage(rows))
        except DeviceLost:
            # A lost CUDA context poisons the process; Ray starts another one and gives it these rows again.
            logger.exception("the device is lost; restarting this replica")
            os._exit(1)

    def __del__(self) -> None:
        """Ray Data lets the replica go, in a pool that shrinks or at the end; a process that is killed has no say."""
        with suppress(AttributeError, RayError):  # it never came so far, or the run is over
            self._clock.end()
            self._client.say_goodbye()


def _accelerator(device: str) -> str:
    """The device's name. One that Ray was only told of has none."""
    if device == "cpu":
        return "CPU"
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "GPU"


def use_expandable_segments() -> None:
    """Have this process take GPU memory in segments that grow, unless the user's environment says how it is taken.

    Batches of many shapes follow on each other: blocks of one shape's sizes are of little use to the next, and memory
    runs out while much of it is free. It has an effect before the process first uses a GPU: PyTorch reads it then.
    The pools of CUDA graphs grow likewise.
    """
    if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:  # the older name, which goes before the other
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
