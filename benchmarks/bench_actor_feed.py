"""How much of their ideal throughput the graph lets the replicas reach: ``python -m benchmarks.bench_actor_feed``.

The annotate job as it is, with a model that takes a fixed time for a batch and otherwise sleeps, like a thread
that waits for its GPU. Ray runs a set-up hook in every worker process; it puts the stub in the place of
`pipeline.replica.load_model`. The stub notes when each batch began and ended.

Two shares, in the steady state (all replicas warm, none dry yet): *throughput* is the images done against what
replicas that never wait would have done; *busy* is the time inside the model, oversleeping included.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import tempfile
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch
from PIL import Image

import pipeline.replica
from benchmarks.bench_masks import random_boxes, soft_masks
from benchmarks.machine import describe
from jobs.demo import random_model
from pipeline.annotate import RunReport, annotate
from pipeline.config import AnnotateConfig
from pipeline.model.categories import Category
from pipeline.model.checkpoints import Checkpoint, save_checkpoint
from pipeline.model.detections import Detections

STUB_VARIABLE = "MASKFLEET_BENCH_STUB"
NUM_FILES = 64  # manifests point at the same few files again and again
WARM_UP_S = 8.0  # from a replica's first batch to its steady state


@dataclass(frozen=True)
class StubSettings:
    """What the model of fixed duration does.

    Attributes:
        batch_s: duration of one batch, full or not.
        detections: of each image.
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

    def predict(
        self, images: Sequence[np.ndarray], batch_size: int, image_sizes: Sequence[tuple[int, int]]
    ) -> list[Detections]:
        """Sleep once for each batch; the same detections for all images of a size."""
        for start in range(0, len(images), batch_size):
            began = time.monotonic()
            for image in images[start : start + batch_size]:
                image[::16, ::16].sum()  # a copy to a device would touch the pixels too
            time.sleep(max(0.0, began + self._settings.batch_s - time.monotonic()))
            count = len(images[start : start + batch_size])
            self._log.write(json.dumps([began, time.monotonic(), count]) + "\n")
        return [self._detections(size) for size in image_sizes]

    def _detections(self, size: tuple[int, int]) -> Detections:
        if size not in self._made:
            rng, count = np.random.default_rng(0), self._settings.detections
            boxes = random_boxes(rng, count, size, 0.05)
            scores = np.sort(rng.uniform(0.5, 1, count).astype(np.float32))[::-1].copy()
            labels = rng.integers(0, len(self.categories), count)
            self._made[size] = Detections(boxes, scores, labels, soft_masks(rng, count), size)
        return self._made[size]


def install_stub() -> None:
    """Ray's set-up hook for worker processes: models are stubs from here on."""
    settings = StubSettings(**json.loads(os.environ[STUB_VARIABLE]))

    def load_stub(checkpoint: Checkpoint, *_: Any, **__: Any) -> StubPredictor:
        return StubPredictor(settings, checkpoint.categories)

    pipeline.replica.load_model = load_stub  # type: ignore[assignment]


def start_ray(settings: StubSettings, **options: Any) -> None:
    """Ray in this process, whose workers load stubs in the place of models."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    here = str(Path(__file__).resolve().parents[1])  # the hook runs before workers get the driver's sys.path
    python_path = os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))
    environment = {
        "worker_process_setup_hook": "benchmarks.bench_actor_feed.install_stub",
        "env_vars": {STUB_VARIABLE: json.dumps(asdict(settings)), "PYTHONPATH": python_path},
    }
    ray.init(
        include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR, runtime_env=environment, **options
    )


def make_inputs(folder: Path, size: tuple[int, int], seed: int = 0) -> list[Path]:
    """``model.safetensors`` (for its categories) and `NUM_FILES` JPEG files."""
    save_checkpoint(random_model(0), folder / "model.safetensors")
    rng = np.random.default_rng(seed)
    paths = [folder / f"{i}.jpg" for i in range(NUM_FILES)]
    for path in paths:
        coarse = rng.integers(0, 256, (size[0] // 16, size[1] // 16, 3), np.uint8)
        Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC).save(path, quality=90)
    return paths


def run_job(folder: Path, files: Sequence[Path], num_images: int, batch_size: int, **resources: Any) -> RunReport:
    """The annotate job over ``num_images`` rows that take turns with the files; the output is thrown away."""
    uris = [str(files[i % len(files)]) for i in range(num_images)]
    pq.write_table(pa.table({"image_id": range(num_images), "image_uri": uris}), folder / "manifest.parquet")
    with tempfile.TemporaryDirectory(dir=folder, prefix="output-") as output:
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
                "output": {"uri": output, "images_per_file": 512},
            }
        )
        return annotate(config)


def steady_state(log_dir: Path, batch_s: float, batch_size: int) -> tuple[float, float, float]:
    """Throughput share, busy share and seconds of the steady state; deletes the logs it reads."""
    replicas = []
    for path in log_dir.glob("*.jsonl"):
        batches = np.array([json.loads(line) for line in path.read_text().splitlines()])
        path.unlink()
        if len(batches):
            replicas.append(batches)
    start = max(batches[0, 0] for batches in replicas) + WARM_UP_S
    end = min(batches[-1, 1] for batches in replicas)
    window = (end - start) * len(replicas)
    ideal = busy = 0.0
    for began, ended, count in np.concatenate(replicas):
        inside = max(0.0, min(ended, end) - max(began, start))
        busy += inside
        ideal += inside / (ended - began) * count / batch_size * batch_s
    return ideal / window, busy / window, end - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--actors", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batches-per-block", type=int, nargs="+", default=[2, 3, 4])
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--batch-ms", type=float, default=80.0)
    parser.add_argument("--detections", type=int, default=20, help="of each image")
    parser.add_argument("--size", type=int, nargs=2, default=[96, 128], metavar=("H", "W"), help="of the JPEGs")
    parser.add_argument("--seconds", type=float, default=40.0, help="of ideal work in each run, warm-up and all")
    parser.add_argument("--cpus", type=int, default=len(os.sched_getaffinity(0)), help="that Ray may schedule")
    args = parser.parse_args()
    batch_s = args.batch_ms / 1e3
    print(f"{describe()}, ray {ray.__version__}")
    print(f"{args.batch_size} images per {args.batch_ms:g} ms, {args.size[0]}x{args.size[1]} JPEGs, ", end="")
    print(f"{args.detections} detections an image\n")
    print("| actors | images per block | ideal img/s | throughput share | busy share | steady s | run.json | load |")
    print("|--:|--:|--:|--:|--:|--:|--:|--:|", flush=True)
    with tempfile.TemporaryDirectory(prefix="bench-feed-") as name:
        folder, log_dir = Path(name), Path(name, "log")
        log_dir.mkdir()
        files = make_inputs(folder, tuple(args.size))
        settings = StubSettings(batch_s, args.detections, str(log_dir))
        start_ray(settings, num_cpus=args.cpus, num_gpus=max(args.actors), object_store_memory=512 << 20)
        run_job(folder, files, 16 * args.batch_size, args.batch_size, gpus_per_actor=1)  # starts the worker processes
        for path in log_dir.glob("*.jsonl"):
            path.unlink()
        for actors in args.actors:
            for batches in args.batches_per_block:
                ideal = actors * args.batch_size / batch_s
                block = batches * args.batch_size
                report = run_job(
                    folder,
                    files,
                    round(ideal * args.seconds),
                    args.batch_size,
                    actors=actors,
                    gpus_per_actor=1,
                    images_per_block=block,
                )
                share, busy, seconds = steady_state(log_dir, batch_s, args.batch_size)
                own = report.this_run["replica_busy_share"]
                line = f"| {actors} | {block} | {ideal:.0f} | {share:.1%} | {busy:.1%} | {seconds:.0f} | {own:.1%} "
                print(f"{line}| {os.getloadavg()[0]:.1f} |", flush=True)
        ray.shutdown()


if __name__ == "__main__":
    main()
