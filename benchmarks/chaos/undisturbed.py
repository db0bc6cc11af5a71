"""What the job makes of its images where nothing can disturb it: its stages one after the other, in this process."""

from __future__ import annotations

import tempfile
from typing import Any

import numpy as np
import torch

from pipeline.annotate.config import AnnotateConfig
from pipeline.annotate.manifest.open import open_manifest
from pipeline.annotate.prepare import model_settings
from pipeline.annotate.stages.encode import Encode
from pipeline.annotate.stages.fetch_decode import FetchDecode
from pipeline.annotate.stages.guard import InProcessGuard
from pipeline.annotate.stages.ordering import BatchOrder
from pipeline.annotate.stages.segment import Segment
from pipeline.annotate.stages.stage import StageCounts
from pipeline.annotations.pictures import PictureSource
from pipeline.annotations.schema import output_schema
from pipeline.model.files.checkpoints import load_checkpoint
from pipeline.model.predictor import load_model
from pipeline.storage.uris import Uri


def undisturbed_rows(config: AnnotateConfig) -> list[dict[str, Any]]:
    """The rows that a run should write, roughly in the order of the manifest."""
    checkpoint = load_checkpoint(config.model.checkpoint.secret_text)
    settings, guard = model_settings(config, checkpoint), InProcessGuard()
    thresholds = config.model.label_thresholds([category.name for category in checkpoint.categories])
    predictor = load_model(checkpoint, "cpu", config.model.precision, settings)
    pictures = PictureSource.of_config(config.images)
    with tempfile.TemporaryDirectory() as scratch:
        manifest = open_manifest(config.manifest, Uri(scratch))
        schema = output_schema(manifest.id_type, manifest.carried)
        order = BatchOrder(settings.short_side, settings.long_side, config.model.batch_size, config.images_per_block)
        fetch_decode = FetchDecode(pictures, order, guard, _discard)
        segment = Segment(predictor, config.model.batch_size, thresholds, guard, _discard)
        encode = Encode(schema, checkpoint.categories, guard, _discard)
        rows: list[dict[str, Any]] = []
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as in a replica
        try:
            for unit in manifest.units:
                for table in manifest.read_rows(unit, np.arange(unit.num_rows), config.images_per_block):
                    for decoded in fetch_decode(table):
                        rows += encode(segment(decoded)).to_pylist()
        finally:
            torch.set_num_threads(threads)
    return rows


def _discard(counts: StageCounts) -> None:
    """Nobody counts."""
