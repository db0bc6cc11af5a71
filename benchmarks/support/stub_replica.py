"""A replica whose model takes a fixed time for a batch and otherwise sleeps, like a thread that waits for its GPU.

The actor takes the place of `pipeline.annotate.replica.SegmentActor` in the driver, so that only replicas import this
module: what every worker process imported would count as the pipeline's.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch
from PIL import Image

import pipeline.annotate.replica
from benchmarks.support.random_model import random_model
from pipeline.annotate.config import AnnotateConfig
from pipeline.annotate.run import annotate
from pipeline.annotations.run_json import RunJson
from pipeline.model.categories import Category
from pipeline.model.detections import Detections
from pipeline.model.files.checkpoints import Checkpoint, save_checkpoint
from testing.soft_masks import random_boxes, soft_masks

STUB_VARIABLE = "MASKFLEET_BENCH_STUB"
NUM_FILES = 64  # manifests point at the same few files again and again
IMAGES_PER_FILE = 512


@dataclass(frozen=True)
class StubSettings:
    """What the model of fixed duration does.

    Attributes:
        batch_s: duration of one batch, full or not.
        detections: how many it finds on each image.
        log_dir: where each replica writes down its batches; not read by others before the run is over.
    """

    batch_s: float
    detections: int
    log_dir: str


class StubPredictor:
    """Stands for `pipeline.model.predictor.Predictor`."""

    def __init__(self, settings: StubSettings, categories: tuple[Category, ...]) -> None:
        self.categories = categories
        self.device = torch.device("cpu")
        self._settings = settings
        self._log = Path(settings.log_dir, f"{uuid.uuid4().hex}.jsonl").open("w", buffering=1)  # noqa: SIM115
        self._made: dict[tuple[int, int], Detections] = {}

    def attempt(
        self,
        images: Sequence[np.ndarray],
        batch_size: int,
        image_sizes: Sequence[tuple[int, int]],
        during: Callable[[Sequence[int]], AbstractContextManager[None]],
    ) -> list[Detections]:
        """Sleep once for each batch; the same detections for all images of a size."""
        for start in range(0, len(images), batch_size):
            members = range(len(images))[start : start + batch_size]
            began = time.monotonic()
            for i in members:
                images[i][::16, ::16].sum()  # a copy to a device would touch the pixels too
            with during(members):
                time.sleep(max(0.0, began + self._settings.batch_s - time.monotonic()))
            self._log.write(json.dumps([began, time.monotonic(), len(members)]) + "\n")
        return [self._detections(size) for size in image_sizes]

    def _detections(self, size: tuple[int, int]) -> Detections:
        if size not in self._made:
            rng, count = np.random.default_rng(0), self._settings.detections
            boxes = random_boxes(rng, count, size, 0.05)
            scores = np.sort(rng.uniform(0.5, 1, count).astype(np.float32))[::-1].copy()
            labels = rng.integers(0, len(self.categories), count)
            self._made[size] = Detections(boxes, scores, labels, soft_masks(rng, count), size)
        return self._made[size]


class StubActor(pipeline.annotate.replica.SegmentActor):
    """The replica as it is, but for its model."""

    def __init__(self, *args: Any, **options: Any) -> None:
        settings = StubSettings(**json.loads(os.environ[STUB_VARIABLE]))

        def load_stub(checkpoint: Checkpoint, *_: Any, **__: Any) -> StubPredictor:
            return StubPredictor(settings, checkpoint.categories)

        pipeline.annotate.replica.load_model = load_stub  # type: ignore[assignment]
        super().__init__(*args, **options)


def start_ray(settings: StubSettings, **options: Any) -> None:
    """Ray in this process, and stubs as the replicas of the jobs that this process runs."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    here = str(Path(__file__).resolve().parents[2])
    python_path = os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))
    environment = {"env_vars": {STUB_VARIABLE: json.dumps(asdict(settings)), "PYTHONPATH": python_path}}
    ray.init(
        include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR, runtime_env=environment, **options
    )
    pipeline.annotate.replica.SegmentActor = StubActor  # type: ignore[misc]


def make_inputs(folder: Path, size: tuple[int, int], seed: int = 0) -> list[Path]:
    """``model.safetensors`` (for its categories) and `NUM_FILES` JPEG files."""
    save_checkpoint(random_model(0), folder / "model.safetensors")
    rng = np.random.default_rng(seed)
    paths = [folder / f"{i}.jpg" for i in range(NUM_FILES)]
    for path in paths:
        coarse = rng.integers(0, 256, (size[0] // 16, size[1] // 16, 3), np.uint8)
        Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC).save(path, quality=90)
    return paths


def write_manifest(folder: Path, files: Sequence[Path], num_images: int) -> Path:
    """``manifest.parquet`` of ``num_images`` rows that take turns with the files."""
    uris = [str(files[i % len(files)]) for i in range(num_images)]
    path = folder / "manifest.parquet"
    pq.write_table(pa.table({"image_id": range(num_images), "image_uri": uris}), path)
    return path


def annotate_with_stub(folder: Path, output: Path, batch_size: int, **resources: Any) -> RunJson:
    """The annotate job over the folder's manifest."""
    config = AnnotateConfig.model_validate(
        {
            "manifest": {"uri": str(folder / "manifest.parquet")},
            "model": {
                "checkpoint": str(folder / "model.safetensors"),
                "batch_size": batch_size,
                "short_side": 800,  # the published model's: small pictures must cross as they are
                "long_side": 1333,
            },
            "resources": resources,
            "output": {"uri": str(output), "images_per_file": IMAGES_PER_FILE},
        }
    )
    return annotate(config)


def run_job(folder: Path, files: Sequence[Path], num_images: int, batch_size: int, **resources: Any) -> RunJson:
    """The annotate job over so many rows; the output is thrown away."""
    write_manifest(folder, files, num_images)
    with tempfile.TemporaryDirectory(dir=folder, prefix="output-") as output:
        return annotate_with_stub(folder, Path(output), batch_size, **resources)


def main(argv: Sequence[str] | None = None) -> int:
    """The annotate job as it is, but for its replicas; takes its arguments, and gives its exit code.

    The nodes of its cluster must have been started with `STUB_VARIABLE`, and this repository on their path.
    """
    from benchmarks.support import stub_replica  # not this module, which workers cannot import where it is __main__
    from jobs import annotate as job

    pipeline.annotate.replica.SegmentActor = stub_replica.StubActor  # type: ignore[misc]
    return job.main(argv)


if __name__ == "__main__":
    sys.exit(main())
