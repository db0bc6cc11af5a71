"""Time and memory of `show` on an output of many files: ``python -m benchmarks.bench_show --files 5000``.

The output is made by the project's own writer: in each file one image in ten has failed, for one of three reasons. The
files are in the page cache; ``--s3`` puts them into an S3 server on this machine, which does little else than answer
one request after the other, so its figure is that of the server. Each measurement is a process of its own.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.annotations.data_file import Identity
from pipeline.annotations.ledger import OutputStore
from pipeline.annotations.schema import ANNOTATED, FAILED, ImageDetections, detections_array
from pipeline.storage.map_ahead import map_ahead
from pipeline.storage.uris import Uri
from testing.output_rows import output_rows
from testing.s3_server import s3_environment_variables, s3_process

CODES = ("not_found", "bad_image", "timeout")
DETECTIONS = 3
CLASSES = 80
IDENTITY = Identity("swin_t", "a" * 64, "c" * 64, "{}", "0.1", "20260101T000000-00000000")


def make_output(uri: Uri, num_files: int, rows_per_file: int) -> None:
    """Files of equal size with ids that count up."""
    store = OutputStore(uri)
    tables = (rows(number * rows_per_file, rows_per_file) for number in range(num_files))
    for _ in map_ahead(lambda table: store.write_rows(table, IDENTITY), tables, 8, 16):
        pass


def rows(first_id: int, num_rows: int) -> pa.Table:
    """Rows as a run writes them."""
    ids = range(first_id, first_id + num_rows)
    bad = [i % 10 == 0 for i in ids]
    codes = [CODES[i // 10 % 3] if is_bad else None for i, is_bad in zip(ids, bad, strict=True)]
    found = [None if is_bad else detections(i) for i, is_bad in zip(ids, bad, strict=True)]
    sizes = [pa.array([None if is_bad else side for is_bad in bad], pa.int32()) for side in (480, 640)]
    columns = [
        pa.array(ids),
        pa.array([f"s3://images/{i}.jpg" for i in ids]),
        *sizes,
        pa.array([None if is_bad else 1 for is_bad in bad], pa.int8()),
        pa.array([FAILED if is_bad else ANNOTATED for is_bad in bad]),
        detections_array(found, range(1, CLASSES + 1), [f"class {n}" for n in range(1, CLASSES + 1)]),
        pa.array(["fetch" if is_bad else None for is_bad in bad], pa.string()),
        pa.array(codes, pa.string()),
        pa.array([f"s3://images/{i}.jpg: why not" if is_bad else None for i, is_bad in zip(ids, bad, strict=True)]),
    ]
    return output_rows(columns)


def detections(seed: int) -> ImageDetections:
    """A few, of any class."""
    rng = np.random.default_rng(seed)
    return ImageDetections(
        boxes=(rng.random((DETECTIONS, 4)) * 100).astype(np.float32),
        scores=np.sort(rng.random(DETECTIONS))[::-1].astype(np.float32),
        labels=rng.integers(0, CLASSES, DETECTIONS),
        areas=rng.integers(1, 1000, DETECTIONS).astype(np.float32),
        image_size=(480, 640),
        counts=[bytes(rng.integers(48, 112, 100, dtype=np.uint8)) for _ in range(DETECTIONS)],
    )


def measure(name: str, *arguments: str) -> str:
    """A line of the table: one command in a process of its own."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "jobs.show", *arguments], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    assert status == 0
    peak_bytes = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return f"| {name} | {seconds:.1f} | {usage.ru_utime + usage.ru_stime:.1f} | {peak_bytes / 1e6:.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=5000)
    parser.add_argument("--rows", type=int, default=100, help="in each file")
    parser.add_argument("--s3", action="store_true", help="in an S3 server of this machine")
    parser.add_argument("--make", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.make:
        make_output(Uri(args.make), args.files, args.rows)
        return
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-show-")))
        uri = Uri(str(folder / "out"))
        if args.s3:
            server = stack.enter_context(s3_process())
            server.create_bucket("bucket")
            stack.enter_context(s3_environment_variables(server.endpoint))
            uri = Uri("s3://bucket/out")
        numbers = ("--files", str(args.files), "--rows", str(args.rows))
        # In a process of its own: Linux lets a child inherit its parent's peak.
        subprocess.run([sys.executable, "-m", "benchmarks.bench_show", *numbers, "--make", str(uri)], check=True)
        lines = [measure("show", str(uri)), measure("show --failed", str(uri), "--failed", str(folder / "failed.csv"))]
    from benchmarks.support.machine import describe  # imports torch, whose memory the children would inherit

    print(f"{describe()}, pyarrow {pa.__version__}")
    print(f"{args.files:,} files of {args.rows:,} rows, {'S3 on this machine' if args.s3 else 'local'}\n")
    print("| command | s | CPU s | peak MB |")
    print("|--|--:|--:|--:|")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
