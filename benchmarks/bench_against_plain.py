"""The annotate job against what one would write without it: ``python -m benchmarks.bench_against_plain``.

The same pictures, the same model of fixed duration (`benchmarks.support.stub_replica`), the same masks and the same
files, made by the job, by a plain Ray Data script and by a loop over a DataLoader (`benchmarks.support.plain_ways`).
All decode with Pillow, one thread a process, and rasterise masks with the job's function: pasting them would cost each
of the plain ways many times as much (``benchmarks.bench_masks``).

CPU time of all processes of a way, those of Ray included, over the images that its model took meanwhile. The ways run
side by side, so that what else happens on the machine happens to all of them, and the time that counts begins when all
are at work and no process has been started for a while: a worker's start takes some seconds of CPU. What a run does at
its start and its end is not in it. At last the rows that a way has written are compared with the job's: they must be
equal.

``--stages`` leaves Ray out: the job's stages against the same work written plainly, in one process.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from PIL import Image

from benchmarks.bench_fetch_decode import textured_picture
from benchmarks.support.machine import describe
from benchmarks.support.plain_ways import with_data_loader, with_ray_data
from benchmarks.support.process_cpu import KINDS, CpuTimes
from benchmarks.support.stages_alone import PARTS, stages_ms
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
MIXES = ("coco", "tiny")
TINY = (96, 128)
NUM_IMAGES = 300_000  # more than there is time for
BATCH, BLOCK = 16, 64
BATCH_S = 0.01
DETECTIONS = 20
CPUS = 2
FIRST_IMAGES = 2 * IMAGES_PER_FILE  # of each way, before anything counts
# Files are encoded and written whole: one more or less among so many changes little.
MIN_IMAGES = 8 * IMAGES_PER_FILE
STAGES_IMAGES, STAGES_ROUNDS = 1024, 4
QUIET_S = 10.0  # since the last start of a process
GIVE_UP_S = 600.0
COMPARED = ("image_id", "image_uri", "height", "width", "exif_orientation", "status", "detections")


def make_pictures(folder: Path, mix: str) -> list[Path]:
    """JPEG files, and the stub's checkpoint beside them."""
    files = make_inputs(folder, TINY)
    if mix == "coco":
        rng = np.random.default_rng(0)
        for file, size in zip(files, coco_like_sizes(len(files)), strict=True):
            Image.fromarray(textured_picture(rng, *size)).save(file, quality=90)
    return files


def serve(way: str, folder: Path) -> None:
    """A way's process: annotate the folder's manifest."""
    torch.set_num_threads(1)
    settings = StubSettings(BATCH_S, DETECTIONS, str(_log_dir(folder, way)))
    if way != LOOP:
        # Workers that have nothing to do for a second would end, and others start soon after.
        lasting = {"idle_worker_killing_time_threshold_ms": 3_600_000}
        start_ray(settings, num_cpus=CPUS, num_gpus=1, object_store_memory=1 << 30, _system_config=lasting)
    manifest, out = folder / "manifest.parquet", folder / way
    model = folder / "model.safetensors", settings, BATCH
    if way == OURS:
        annotate_with_stub(folder, out, BATCH, actors=1, gpus_per_actor=1, images_per_block=BLOCK)
    elif way == SCRIPT:
        with_ray_data(manifest, out, model, BLOCK, IMAGES_PER_FILE)
    else:
        with_data_loader(manifest, out, model, CPUS, IMAGES_PER_FILE)


def _log_dir(folder: Path, way: str) -> Path:
    return folder / f"{way} log"


class Way:
    """One of the ways at work, in a process of its own.

    Args:
        name: of `WAYS`.
        folder: with manifest and pictures; the way's output goes into it.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self._folder = name, folder
        _log_dir(folder, name).mkdir()
        command = [sys.executable, "-m", "benchmarks.bench_against_plain", "--serve", name, "--folder", str(folder)]
        with open(folder / f"{name}.txt", "wb") as said:
            self._process = subprocess.Popen(command, stdout=said, stderr=said)
        self._root = psutil.Process(self._process.pid)

    def cpu(self) -> CpuTimes:
        """Of its processes, so far."""
        return CpuTimes.of_tree(self._root)

    def images(self, start: float = 0.0, end: float = math.inf) -> int:
        """Those that the model took between two moments of the monotonic clock.

        Raises:
            RuntimeError: the process has ended.
        """
        if self._process.poll() is not None:
            said = (self._folder / f"{self.name}.txt").read_text(errors="replace")
            raise RuntimeError(f"{self.name} has ended:\n{said[-2000:]}")
        lines = [line for log in _log_dir(self._folder, self.name).iterdir() for line in log.read_text().splitlines()]
        return sum(count for _, ended, count in map(json.loads, lines) if start <= ended < end)

    def end(self) -> None:
        """Kill all of its processes."""
        with suppress(psutil.NoSuchProcess):
            for process in [*self._root.children(recursive=True), self._root]:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        self._process.wait()

    def rows(self) -> dict[int, dict[str, Any]]:
        """What it has written, by image id; a file that was not finished is left out."""
        rows: dict[int, dict[str, Any]] = {}
        for path in (self._folder / self.name).rglob("*.parquet"):
            with suppress(pa.ArrowInvalid):
                table = pq.ParquetFile(path).read(columns=COMPARED)
                rows.update({row["image_id"]: row for row in table.filter(pc.field("image_id") < 4096).to_pylist()})
        return rows


def measure(mix: str, seconds: float) -> dict[str, dict[str, float]]:
    """CPU milliseconds an image of each way, by kind of process.

    Raises:
        RuntimeError: a way has failed, or processes are started all the time, or rows that were written differ.
    """
    with tempfile.TemporaryDirectory(prefix="bench-plain-") as name:
        folder = Path(name)
        write_manifest(folder, make_pictures(folder, mix), NUM_IMAGES)
        ways: list[Way] = []
        try:
            for each in WAYS:
                if each == LOOP:  # is at work at once, and would keep the others from it
                    _wait_for_images(ways)
                ways.append(Way(each, folder))
            _wait_for_images(ways)
            spent, images = _window(ways, seconds)
        finally:
            for way in ways:
                way.end()
        outputs = {way.name: way.rows() for way in ways}
        for way_name, rows in outputs.items():
            common = rows.keys() & outputs[OURS].keys()
            if any(rows[i] != outputs[OURS][i] for i in common):
                raise RuntimeError(f"{way_name} has written other rows than {OURS}")
            if not common:
                print(f"{way_name} has written none of the rows that were to be compared", file=sys.stderr)
    return {way: {kind: s * 1e3 / images[way] for kind, s in each.items()} for way, each in spent.items()}


def _wait_for_images(ways: Sequence[Way]) -> None:
    give_up_at = time.monotonic() + GIVE_UP_S
    while any(way.images() < FIRST_IMAGES for way in ways):
        if time.monotonic() > give_up_at:
            raise RuntimeError(f"at work: {[(way.name, way.images()) for way in ways]}")
        time.sleep(1)


def _window(ways: Sequence[Way], seconds: float) -> tuple[dict[str, dict[str, float]], dict[str, int]]:
    """What each way spent in so many seconds, or in more for `MIN_IMAGES`, and the images it took in them."""
    give_up_at = time.monotonic() + GIVE_UP_S
    quiet_since, begun, before = time.monotonic(), 0.0, [way.cpu() for way in ways]
    while (
        not begun
        or time.monotonic() - begun < seconds
        or any(way.images(begun, time.monotonic()) < MIN_IMAGES for way in ways)
    ):
        time.sleep(1)
        now = [way.cpu() for way in ways]
        if any(new.started_since(old) for new, old in zip(now, before, strict=True)):
            quiet_since, begun = time.monotonic(), 0.0
        if not begun:
            before = now
            if time.monotonic() - quiet_since > QUIET_S:
                begun = time.monotonic()
        if time.monotonic() > give_up_at:
            raise RuntimeError("too few images, or processes are started all the time")
    images = {way.name: way.images(begun, time.monotonic()) for way in ways}
    return {way.name: way.cpu().since(old) for way, old in zip(ways, before, strict=True)}, images


def compare_stages(mixes: Sequence[str], as_json: bool) -> None:
    """Print the table of the stages alone."""
    torch.set_num_threads(1)
    print(f"{describe()}\n\n| pictures | | {' | '.join(PARTS)} | CPU ms an image | of plain |\n|--|--|" + "--:|" * 5)
    figures: dict[str, dict[str, float]] = {}
    for mix in mixes:
        with tempfile.TemporaryDirectory(prefix="bench-plain-") as name:
            folder = Path(name)
            stub = StubSettings(0.0, DETECTIONS, name)
            parts = stages_ms(folder, make_pictures(folder, mix), STAGES_IMAGES, stub, BATCH, BLOCK, STAGES_ROUNDS)
        totals = {way: sum(spent.values()) for way, spent in parts.items()}
        for way, spent in parts.items():
            each = " | ".join(f"{spent[part]:.3f}" for part in PARTS)
            print(f"| {mix} | {way} | {each} | {totals[way]:.3f} | {totals[way] / totals['plain']:.2f}x |", flush=True)
        figures[mix] = {way: round(ms, 3) for way, ms in totals.items()}
        figures[mix]["ratio"] = round(totals["stages"] / totals["plain"], 3)
    if as_json:
        print(json.dumps({"machine": describe(), "cpu_ms_an_image": figures}))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mixes", nargs="+", choices=MIXES, default=MIXES)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each mix, that count, at least")
    parser.add_argument("--stages", action="store_true", help="the stages alone, without Ray")
    parser.add_argument("--json", action="store_true", help="the figures once more, as the last line")
    parser.add_argument("--serve", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.serve:
        serve(args.serve, args.folder)
        return 0
    if args.stages:
        compare_stages(args.mixes, args.json)
        return 0
    print(f"{describe()}\n{DETECTIONS} detections an image, batches of {BATCH}, blocks of {BLOCK}\n")
    print(
        f"| pictures | way | CPU ms an image | of plain Ray Data | {' | '.join(KINDS)} |\n|--|--|"
        + "--:|" * (2 + len(KINDS))
    )
    figures: dict[str, dict[str, float]] = {}
    for mix in args.mixes:
        spent = measure(mix, args.seconds)
        totals = {way: sum(each.values()) for way, each in spent.items()}
        for way in WAYS:
            parts = " | ".join(f"{spent[way][kind]:.2f}" for kind in KINDS)
            print(f"| {mix} | {way} | {totals[way]:.2f} | {totals[way] / totals[SCRIPT]:.2f}x | {parts} |", flush=True)
        figures[mix] = {way: round(ms, 3) for way, ms in totals.items()}
        figures[mix]["ratio"] = round(totals[OURS] / totals[SCRIPT], 3)
    if args.json:
        print(json.dumps({"machine": describe(), "cpu_ms_an_image": figures}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
