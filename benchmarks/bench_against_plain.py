"""The annotate job against what one would write without it: ``python -m benchmarks.bench_against_plain``.

The same pictures, the same model of fixed duration (`benchmarks.support.stub_replica`), the same masks and the same
files, made by the job, by a plain Ray Data script and by a loop over a DataLoader (`benchmarks.support.plain_ways`).
All decode with Pillow, one thread a process, and rasterise masks with the job's function: pasting them would cost each
of the plain ways ten times as much (``benchmarks.bench_masks``).

CPU time of all processes of a way, those of Ray included, but for the start: each way is a process of its own, whose
workers are there before a run and have imported what they need (a start takes some seconds each). It makes few images
and many, and what lies between the two is divided by the images between. The ways take turns, and the best of several
rounds counts. Their outputs are compared, and must be equal.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch
from PIL import Image

from benchmarks.bench_fetch_decode import textured_picture
from benchmarks.support.machine import describe
from benchmarks.support.plain_ways import with_data_loader, with_ray_data
from benchmarks.support.process_cpu import ProcessCpu
from benchmarks.support.stub_replica import (
    IMAGES_PER_FILE,
    StubSettings,
    annotate_with_stub,
    make_inputs,
    start_ray,
    write_manifest,
)
from benchmarks.support.textures import coco_like_sizes

OURS, SCRIPT, LOOP = WAYS = ("maskfleet", "plain Ray Data", "DataLoader")
TINY = (96, 128)
IMAGES = {"coco": 2048, "tiny": 8192}  # of a large run
SMALL = 4  # a small run has the fourth part
BATCH, BLOCK = 16, 64
BATCH_S = 0.01
DETECTIONS = 20
CPUS = 2
READY, DONE = "ready\n", "> done\n"
WORKERS = 6  # a run takes CPUS for fetching, some for light tasks, and one for each actor
COMPARED = ("image_id", "image_uri", "height", "width", "exif_orientation", "status", "detections")


def make_pictures(folder: Path, mix: str) -> list[Path]:
    """JPEG files, and the stub's checkpoint beside them."""
    files = make_inputs(folder, TINY)
    if mix == "coco":
        rng = np.random.default_rng(0)
        for file, size in zip(files, coco_like_sizes(len(files)), strict=True):
            Image.fromarray(textured_picture(rng, *size)).save(file, quality=90)
    return files


def have_workers(folder: Path) -> None:
    """Wait until so many of Ray's workers are there as a run can need, and have imported all that it uses."""
    signs = Path(tempfile.mkdtemp(dir=folder))

    def arrive() -> None:
        from benchmarks.support import plain_ways, stub_replica  # noqa: F401
        from pipeline.annotate import graph  # noqa: F401

        (signs / str(os.getpid())).touch()
        while len(list(signs.iterdir())) < WORKERS:
            time.sleep(0.05)

    task = ray.remote(arrive).options(num_cpus=0.001)
    ray.get([task.remote() for _ in range(WORKERS)])


def serve(way: str, folder: Path) -> None:
    """A way's process: for each line on standard input, annotate the manifest into a folder of that name."""
    log = folder / "log"
    log.mkdir(exist_ok=True)
    torch.set_num_threads(1)
    settings = StubSettings(BATCH_S, DETECTIONS, str(log))
    model = folder / "model.safetensors", settings, BATCH
    if way != LOOP:
        # Workers that have nothing to do for a second would end, and others start in the next run.
        lasting = {"idle_worker_killing_time_threshold_ms": 3_600_000}
        start_ray(settings, num_cpus=CPUS, num_gpus=1, object_store_memory=1 << 30, _system_config=lasting)
    manifest = folder / "manifest.parquet"
    for line in sys.stdin:
        if line == READY:
            if way != LOOP:
                have_workers(folder)
            print(DONE, end="", flush=True)
            continue
        out = folder / line.strip()
        if way == OURS:
            annotate_with_stub(folder, out, BATCH, actors=1, gpus_per_actor=1, images_per_block=BLOCK)
        elif way == SCRIPT:
            with_ray_data(manifest, out, model, BLOCK, IMAGES_PER_FILE)
        else:
            with_data_loader(manifest, out, model, CPUS, IMAGES_PER_FILE)
        print(DONE, end="", flush=True)


class Way:
    """One of the ways, in a process of its own.

    Args:
        name: of `WAYS`.
        folder: with manifest and pictures; the way's output goes into it.
        log: takes what the process says beside.
    """

    def __init__(self, name: str, folder: Path, log: Path) -> None:
        self.name, self._folder, self._num_runs = name, folder, 0
        with open(log, "ab") as errors:
            command = [sys.executable, "-m", "benchmarks.bench_against_plain", "--serve", name, "--folder", str(folder)]
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=errors, text=True)
        self._cpu = ProcessCpu(self._process.pid)

    def run(self) -> tuple[Counter[str], pa.Table]:
        """Annotate the manifest once: CPU seconds by kind of process, and the output's rows in order of their ids.

        Raises:
            RuntimeError: the process has ended.
        """
        self._num_runs += 1
        out = self._folder / f"{self.name}-{self._num_runs}".replace(" ", "-")
        self._ask(READY)
        with self._cpu.watched() as spent:
            self._ask(f"{out.name}\n")
        files = sorted(out.rglob("*.parquet"))
        rows = pa.concat_tables([pq.ParquetFile(file).read(columns=COMPARED) for file in files])
        shutil.rmtree(out)
        return spent, rows.sort_by("image_id")

    def _ask(self, line: str) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line)
        self._process.stdin.flush()
        while (answer := self._process.stdout.readline()) != DONE:
            if not answer:
                raise RuntimeError(f"{self.name} has failed")

    def end(self) -> None:
        """End the process, and Ray with it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def measure(mix: str, num_images: int, rounds: int) -> dict[str, Counter[str]]:
    """CPU milliseconds an image of each way, by kind of process.

    Raises:
        RuntimeError: a way has failed, or the outputs differ.
    """
    with tempfile.TemporaryDirectory(prefix="bench-plain-") as name:
        folder = Path(name)
        files = make_pictures(folder, mix)
        sizes = num_images // SMALL, num_images
        best: dict[tuple[str, int], Counter[str]] = {}
        ways: list[Way] = []
        try:
            ways += [Way(way, folder, folder / f"{i}.log") for i, way in enumerate(WAYS)]
            for number in range(rounds + 1):
                for size in sizes:
                    write_manifest(folder, files, size)
                    outputs = {}
                    for way in ways:
                        spent, outputs[way.name] = way.run()
                        key = way.name, size
                        if number and (key not in best or spent.total() < best[key].total()):
                            best[key] = spent
                    for way_name, rows in outputs.items():
                        if not rows.equals(outputs[OURS]):
                            raise RuntimeError(f"{way_name} gives other rows than {OURS}")
        except RuntimeError:
            sys.stderr.write("".join(log.read_text(errors="replace")[-4000:] for log in folder.glob("*.log")))
            raise
        finally:
            for way in ways:
                way.end()
    small, large = sizes
    between = {way: Counter(best[way, large]) for way in WAYS}
    for way, spent in between.items():
        spent.subtract(best[way, small])
    return {
        way: Counter({kind: s * 1e3 / (large - small) for kind, s in spent.items()}) for way, spent in between.items()
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mixes", nargs="+", choices=list(IMAGES), default=list(IMAGES))
    parser.add_argument("--images", type=int, help="of a large run")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="the figures once more, as the last line")
    parser.add_argument("--serve", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.serve:
        serve(args.serve, args.folder)
        return 0
    print(f"{describe()}\n{DETECTIONS} detections an image, batches of {BATCH}, blocks of {BLOCK}\n")
    kinds = ("driver", "tasks", "replica", "monitor", "servers", "other")
    print(f"| pictures | way | CPU ms an image | of plain Ray Data | {' | '.join(kinds)} |\n|--|--|" + "--:|" * 8)
    figures: dict[str, dict[str, float]] = {}
    for mix in args.mixes:
        spent = measure(mix, args.images or IMAGES[mix], args.rounds)
        totals = {way: each.total() for way, each in spent.items()}
        for way in WAYS:
            parts = " | ".join(f"{spent[way][kind]:.2f}" for kind in kinds)
            print(f"| {mix} | {way} | {totals[way]:.2f} | {totals[way] / totals[SCRIPT]:.2f}x | {parts} |", flush=True)
        figures[mix] = {way: round(ms, 3) for way, ms in totals.items()}
        figures[mix]["ratio"] = round(totals[OURS] / totals[SCRIPT], 3)
    if args.json:
        print(json.dumps({"machine": describe(), "cpu_ms_an_image": figures}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
