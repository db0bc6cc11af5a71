"""The actor that holds one replica of the model. Apart from `graph`, which every worker imports."""

from __future__ import annotations

import logging
import os

import pyarrow as pa
import ray
import torch

from pipeline.annotate.monitor import MonitorClient
from pipeline.annotate.parts import RunParts
from pipeline.annotate.stages.segment import DeviceLost, Segment
from pipeline.model.predictor import load_model
from pipeline.model.speed import SpeedOptions

logger = logging.getLogger(__name__)


class SegmentActor:
    """The segment stage in an actor of Ray Data's pool."""

    def __init__(self, parts: RunParts) -> None:
        model = parts.config.model
        device = "cuda" if parts.pool.gpus else "cpu"
        if device == "cpu":
            torch.set_num_threads(max(1, round(parts.pool.cpus)))
        predictor = load_model(
            ray.get(parts.checkpoint),
            device,
            model.precision,
            parts.settings,
            speed=SpeedOptions(compile=model.compile),
        )
        client = MonitorClient(parts.monitor)
        thresholds = model.label_thresholds([c.name for c in predictor.categories])
        self._stage = Segment(predictor, model.batch_size, thresholds, client, client.report)

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Decoded rows to segmented rows."""
        try:
            return self._stage(rows)
        except DeviceLost:
            # A lost CUDA context poisons the process; Ray starts another one and gives it these rows again.
            logger.exception("the device is lost; restarting this replica")
            os._exit(1)
