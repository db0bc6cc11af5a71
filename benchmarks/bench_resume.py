"""Time and memory from start to the list of pending rows: ``python -m benchmarks.bench_resume --rows 1000000``.

A Parquet manifest with string ids, and a folder of Parquet files as a run leaves them, holding the ids done so
far in random order. Each measurement is a process of its own; the files are in the page cache.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

ROW_GROUP_ROWS = 100_000
ROWS_PER_OUTPUT_FILE = 20_000
DETECTIONS_BYTES = 64  # stands for the columns that a resume must not read


def make_files(folder: Path, num_rows: int, done_fraction: float, seed: int) -> None:
    """``manifest.parquet`` and ``output/*.parquet``."""
    rng = np.random.default_rng(seed)
    schema = pa.schema([("image_id", pa.string()), ("image_uri", pa.string())])
    with pq.ParquetWriter(folder / "manifest.parquet", schema, compression="zstd") as writer:
        for start in range(0, num_rows, ROW_GROUP_ROWS):
            ids = make_ids(np.arange(start, min(start + ROW_GROUP_ROWS, num_rows)))
            uris = [f"s3://some-bucket/images/{image_id}.jpg" for image_id in ids]
            writer.write_table(pa.table([pa.array(ids), pa.array(uris)], schema=schema))
    (folder / "output").mkdir()
    done = rng.permutation(num_rows)[: round(num_rows * done_fraction)]
    filler = rng.bytes(DETECTIONS_BYTES)
    for start in range(0, len(done), ROWS_PER_OUTPUT_FILE):
        ids = make_ids(done[start : start + ROWS_PER_OUTPUT_FILE])
        table = pa.table({"image_id": ids, "detections": [filler] * len(ids)})
        path = folder / "output" / f"part-{start // ROWS_PER_OUTPUT_FILE:06d}.parquet"
        pq.write_table(table, path, compression="zstd")


def make_ids(numbers: np.ndarray) -> list[str]:
    """24 characters each, in no order: a multiplication that no two numbers share scatters them."""
    scattered = numbers.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return [f"{number:016x}/{number % 997:07d}" for number in scattered.tolist()]


def read_output_ids(folder: Path) -> Iterator[pa.Array]:
    """The ids that the output holds, a file at a time."""
    for path in sorted((folder / "output").glob("*.parquet")):
        yield pq.ParquetFile(path).read(columns=["image_id"])["image_id"].combine_chunks()


def measure(folder: Path, memory_rows: int, started: float) -> None:
    """Print the figures of one resume as JSON; ``started`` is when its process began."""
    from pipeline.annotate.config import ManifestConfig
    from pipeline.annotate.manifest.open import open_manifest
    from pipeline.annotate.pending.antijoin import find_pending
    from pipeline.storage.uris import Uri

    imported, imported_bytes = time.time(), peak_bytes()
    manifest = open_manifest(ManifestConfig(uri=Uri(str(folder / "manifest.parquet"))), Uri(str(folder / "scratch")))
    opened = time.time()
    pending = find_pending(manifest, read_output_ids(folder), memory_rows=memory_rows, tmp_dir=str(folder))
    units = pending.units
    figures = {
        "import_s": imported - started,
        "open_s": opened - imported,
        "join_s": time.time() - opened,
        "imported_bytes": imported_bytes,
        "peak_bytes": peak_bytes(),
        "pending": sum(len(rows) for _, rows in units),
    }
    print(json.dumps(figures))


def peak_bytes() -> int:
    """Largest resident memory of this process so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def run_step(*arguments: str) -> str:
    """One step in a process of its own. This one stays small: Linux lets a child inherit its peak."""
    command = [sys.executable, "-m", "benchmarks.bench_resume", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def report(args: argparse.Namespace, folder: Path) -> None:
    """Measure each way and print the table."""
    ways = {"in memory": 2 * args.rows, f"spilled, {args.spill_rows:,} ids in memory": args.spill_rows}
    lines = []
    for name, memory_rows in ways.items():
        text = run_step("--step", "measure", "--folder", str(folder), "--memory-rows", str(memory_rows))
        figures = json.loads(text)
        total = figures["import_s"] + figures["open_s"] + figures["join_s"]
        times = " | ".join(f"{figures[key]:.2f}" for key in ("import_s", "open_s", "join_s"))
        memory = f"{figures['peak_bytes'] / 1e6:.0f} | {figures['imported_bytes'] / 1e6:.0f}"
        lines.append(f"| {name} | {times} | {total:.2f} | {memory} | {figures['pending']:,} |")
        assert figures["pending"] == args.rows - round(args.rows * args.done)
    from benchmarks.support.machine import describe  # imports torch, whose memory the children would inherit

    print(f"{describe()}, pyarrow {pa.__version__}")
    print(f"{args.rows:,} rows, {args.done:.1%} done\n")
    print("| join | import s | open and check s | join s | total s | peak MB | of which imports MB | pending |")
    print("|--|--:|--:|--:|--:|--:|--:|--:|")
    print("\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--done", type=float, default=0.99, help="fraction of the rows that the output holds")
    parser.add_argument("--spill-rows", type=int, default=100_000, help="memory_rows of the run that is to spill")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--step", choices=["make", "measure"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--memory-rows", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step == "measure":
        measure(args.folder, args.memory_rows, psutil.Process().create_time())
    elif args.step == "make":
        make_files(args.folder, args.rows, args.done, args.seed)
    else:
        with tempfile.TemporaryDirectory(prefix="bench-resume-") as name:
            shared = ["--rows", str(args.rows), "--done", str(args.done), "--seed", str(args.seed)]
            run_step("--step", "make", "--folder", name, *shared)
            report(args, Path(name))


if __name__ == "__main__":
    main()
