"""Two outputs of made-up rows compared: ``python -m benchmarks.bench_compare --images 100000 1000000``.

Each size in a process of its own: seconds, CPU seconds, and the most memory that it took.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from pycocotools import mask as coco_mask

from benchmarks.bench_resume import peak_bytes
from benchmarks.support.machine import describe
from pipeline.annotations.data_file import Identity
from pipeline.annotations.ledger import OutputStore
from pipeline.annotations.reader import open_source
from pipeline.annotations.schema import ANNOTATED, ImageDetections, detections_array
from pipeline.compare.run import Side, compare
from pipeline.storage.uris import Uri
from testing.output_rows import output_rows

_ROWS_PER_FILE = 2048
_CLASSES = 80


def write_output(folder: Path, num_images: int, per_image: int, seed: int) -> Uri:
    """An output whose files have the same objects, masks as large as their boxes, and ids of their own."""
    rng = np.random.default_rng(seed)
    boxes = [rng.random((per_image, 4)).astype(np.float32) * 200 for _ in range(_ROWS_PER_FILE)]
    found = [
        ImageDetections(
            boxes=own,
            scores=np.sort(rng.random(per_image))[::-1].astype(np.float32),
            labels=rng.integers(0, _CLASSES, per_image),
            areas=rng.integers(10, 20_000, per_image).astype(np.float32),
            image_size=(480, 640),
            counts=[mask["counts"] for mask in coco_mask.frPyObjects(own.astype(np.float64), 480, 640)],
        )
        for own in boxes
    ]
    detections = detections_array(found, range(_CLASSES), [f"class {i}" for i in range(_CLASSES)])
    store = OutputStore(Uri(str(folder)))
    identity = Identity("made up", "0" * 64, "0" * 64, "{}", "0", "run-1")
    for start in range(0, num_images, _ROWS_PER_FILE):
        count = min(_ROWS_PER_FILE, num_images - start)
        nothing = pa.nulls(count, pa.string())
        sides = [pa.repeat(pa.scalar(side, pa.int32()), count) for side in (480, 640)]
        columns = [
            pa.array(np.arange(start, start + count)),
            nothing,
            *sides,
            pa.nulls(count, pa.int8()),
            pa.repeat(ANNOTATED, count),
            detections.slice(0, count),
            *[nothing] * 3,
        ]
        store.write_rows(output_rows(columns), identity)
    return store.uri


def _measured(sides: list[Uri], result: multiprocessing.Queue[tuple[float, float, float]]) -> None:
    started, cpu = time.perf_counter(), time.process_time()
    before, after = (Side(open_source(uri)) for uri in sides)
    compare(before, after)
    result.put((time.perf_counter() - started, time.process_time() - cpu, peak_bytes() / (1 << 20)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--per-image", type=int, default=5, help="detections")
    args = parser.parse_args()
    print(f"{describe()}, {args.per_image} detections an image, {_CLASSES} classes\n")
    print("| images a side | s | CPU s | peak MB |\n|--:|--:|--:|--:|", flush=True)
    spawned = multiprocessing.get_context("spawn")
    for num_images in args.images:
        with tempfile.TemporaryDirectory(prefix="bench-compare-") as name:
            sides = [write_output(Path(name) / str(seed), num_images, args.per_image, seed) for seed in (0, 1)]
            result = spawned.Queue()
            process = spawned.Process(target=_measured, args=(sides, result))
            process.start()
            seconds, cpu, peak = result.get()
            process.join()
        print(f"| {num_images:,} | {seconds:.1f} | {cpu:.1f} | {peak:.0f} |", flush=True)


if __name__ == "__main__":
    main()
