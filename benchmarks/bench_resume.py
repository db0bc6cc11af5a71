"""What it costs to resume: ``python -m benchmarks.bench_resume --rows 1000000``, and with ``--files 1000 5000 50000``.

Rows: time and memory from start to the list of pending rows, of a Parquet manifest with string ids and a folder of
Parquet files that hold the ids done so far in random order.

Files: the annotate job from its first request to its last, on an output of so many small files of which none changes,
with rounds that only write a few more; by phase, with the requests that an object store would get (counted; the files
are on this disk) in this process: the pictures of the page are drawn in another one.

Each measurement is a process of its own; the files are in the page cache.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

ROW_GROUP_ROWS = 100_000
ROWS_PER_OUTPUT_FILE = 20_000
DETECTIONS_BYTES = 64  # stands for the columns that a resume must not read

ROWS_PER_SMALL_FILE = 20
NEW_FILES = 10
ONE_IN_FAILED = 50  # files with failed images
CLASSES = 80
KINDS = ("LIST", "GET", "HEAD", "PUT", "DELETE")


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


def make_output(folder: Path, num_files: int) -> None:
    """A model, ``manifest.parquet`` with ids for ``NEW_FILES`` more files, and ``out/data/*.parquet``."""
    from dataclasses import replace

    from pipeline.annotate.prepare import choose_model, make_identity
    from pipeline.annotations.data_file import data_file_name
    from pipeline.model.categories import Category
    from pipeline.model.files.checkpoints import save_checkpoint
    from testing.small_model import TINY, TINY_SETTINGS, random_checkpoint

    categories = [Category(i + 1, f"class {i + 1}") for i in range(CLASSES)]
    checkpoint = random_checkpoint(replace(TINY, num_classes=CLASSES), categories, TINY_SETTINGS)
    save_checkpoint(checkpoint, folder / "model.safetensors")
    config = config_of(folder)
    identity = make_identity(config, choose_model(config).header, "earlier")
    good, bad = (file_pattern(identity, with_failures) for with_failures in (False, True))
    data = folder / "out/data"
    data.mkdir(parents=True)
    schema = pa.schema([("image_id", pa.string()), ("image_uri", pa.string())])
    with pq.ParquetWriter(folder / "manifest.parquet", schema, compression="zstd") as writer:
        waiting: list[str] = []
        for number in range(num_files + NEW_FILES):
            ids = make_ids(np.arange(number * ROWS_PER_SMALL_FILE, (number + 1) * ROWS_PER_SMALL_FILE))
            waiting += ids
            if number < num_files:
                before, after = good if number % ONE_IN_FAILED else bad
                name = data_file_name(pa.chunked_array([ids]))
                (data / name).write_bytes(before + plain(ids) + after)
            # Each new file is of a unit of its own.
            if len(waiting) >= ROW_GROUP_ROWS or number >= num_files - 1:
                uris = pa.array([f"/nowhere/{image_id}.jpg" for image_id in waiting])
                writer.write_table(pa.table([pa.array(waiting), uris], schema=schema))
                waiting = []


def file_pattern(identity: Any, with_failures: bool) -> tuple[bytes, bytes]:
    """What is before the ids of a file, and after them: written once, since a file takes milliseconds to be encoded.

    Ids are not compressed, and there are no checksums, as in files of earlier releases.
    """
    from pipeline.annotations import data_file

    ids = make_ids(np.arange(ROWS_PER_SMALL_FILE))
    table = rows_of(pa.array(ids), with_failures)
    metadata = data_file._metadata(identity, data_file.Counts.of(table))
    sink = pa.BufferOutputStream()
    pq.write_table(
        table.replace_schema_metadata(metadata),
        sink,
        compression={name: "none" if name == "image_id" else "zstd" for name in _leaves(table.schema)},
        use_dictionary=data_file._DICTIONARY_COLUMNS,
        write_statistics=[name for name in data_file._STATISTICS_COLUMNS if name != "image_id"],
    )
    before, after = sink.getvalue().to_pybytes().split(plain(ids))
    return before, after


def plain(ids: list[str]) -> bytes:
    """As Parquet encodes them."""
    return b"".join(len(text).to_bytes(4, "little") + text.encode() for text in ids)


def _leaves(schema: pa.Schema) -> list[str]:
    sink = pa.BufferOutputStream()
    pq.write_table(schema.empty_table(), sink)
    leaves = pq.ParquetFile(pa.BufferReader(sink.getvalue())).schema
    return [leaves.column(i).path for i in range(len(leaves.names))]


def rows_of(ids: pa.Array, with_failures: bool = False) -> pa.Table:
    """Rows as a run writes them, all the same but for their ids."""
    from benchmarks.bench_show import rows
    from pipeline.annotations.schema import ANNOTATED, output_schema

    table = rows(1, 2 * len(ids))
    if not with_failures:
        table = table.filter(pa.compute.equal(table["status"], ANNOTATED))
    uris = pa.array(["/nowhere/image.jpg"] * len(ids))
    return pa.table([ids, uris, *table[: len(ids)].columns[2:]], schema=output_schema(pa.string()))


def config_of(folder: Path) -> Any:
    """The job's config."""
    from pipeline.annotate.config import AnnotateConfig

    values = {
        "manifest": {"uri": str(folder / "manifest.parquet")},
        "model": {"checkpoint": str(folder / "model.safetensors")},
        "output": {"uri": str(folder / "out"), "max_failed_fraction": 1.0},
    }
    return AnnotateConfig.model_validate(values)


class Phases:
    """What each phase of a run has cost; a phase lasts until the next one begins.

    Args:
        requests: so far, by kind and name, counted by whoever makes them.
    """

    def __init__(self, requests: Counter[tuple[str, str]]) -> None:
        self._requests = requests
        self._costs: dict[str, Counter[str]] = {}
        self._phase = ""
        self._before = self._now()

    def begin(self, phase: str) -> None:
        """The phase before is over; one of the same name goes on."""
        now = self._now()
        spent = self._costs.setdefault(self._phase, Counter())
        spent.update(Counter({name: now[name] - self._before[name] for name in now}))
        spent["peak_bytes"] = peak_bytes()
        self._phase, self._before = phase, self._now()

    def around(self, phase: str, after: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, as a phase."""

        def timed(*args: Any, **options: Any) -> Any:
            self.begin(phase)
            try:
                return call(*args, **options)
            finally:
                self.begin(after)

        return timed

    def costs(self) -> dict[str, Counter[str]]:
        """By phase: requests of each kind, ``cpu_s``, ``wall_s``, and ``peak_bytes`` by its end."""
        return {phase: costs for phase, costs in self._costs.items() if phase}

    def _now(self) -> Counter[str]:
        by_kind: Counter[str] = Counter({"cpu_s": time.process_time(), "wall_s": time.perf_counter()})
        for (kind, _), number in list(self._requests.items()):
            by_kind[kind] += number
        return by_kind


def measure_files(folder: Path) -> None:
    """Print the costs of a run by phase as JSON, and then of one with nothing to do."""
    from pipeline.annotate import run as job
    from pipeline.annotate.summary import page
    from pipeline.annotations.ledger import OutputStore
    from testing.rounds_without_ray import Rounds, rounds_without_ray
    from testing.store_requests import counted_requests

    figures = []
    for _ in range(2):
        with ExitStack() as stack:
            phases = Phases(stack.enter_context(counted_requests()))
            stack.enter_context(rounds_without_ray(rows_of))
            for owner, name, phase, after in (
                (OutputStore, "recover", "recover", "identity"),
                (job, "open_manifest", "manifest", "identity"),
                (job._Run, "pending", "first pass", "books"),
                (Rounds, "run", "rounds", "closing audit"),
                (page, "_draw_if_due", "page", "closing words"),
            ):
                timed = phases.around(phase, after, getattr(owner, name))
                stack.enter_context(mock.patch.object(owner, name, timed))
            phases.begin("lock")
            config = config_of(folder)
            store = OutputStore(config.output.uri)
            job.summary(job.annotate(config, store=store), store)
            phases.begin("")
            figures.append(phases.costs())
    print(json.dumps(figures))


def peak_bytes() -> int:
    """Largest resident memory of this process so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def report_files(numbers: list[int]) -> None:
    """Measure each number of files and print the tables."""
    for num_files in numbers:
        with tempfile.TemporaryDirectory(prefix="bench-resume-") as name:
            step = ("--folder", name, "--files", str(num_files), "--step")
            run_step(*step, "make")
            more, nothing = json.loads(run_step(*step, "measure"))
        for kind, costs in ((f"{NEW_FILES} more to write", more), ("nothing to do", nothing)):
            print(f"{num_files:,} files, {kind}\n", *table(costs, num_files), "", sep="\n", flush=True)
    from benchmarks.support.machine import describe  # imports torch, whose memory the children would inherit

    print(f"{describe()}, pyarrow {pa.__version__}")


def table(costs: dict[str, dict[str, float]], num_files: int) -> list[str]:
    """A line a phase: requests, and for each file those that read."""
    kinds = [kind for kind in KINDS if any(phase.get(kind) for phase in costs.values())]
    total = {key: sum(phase.get(key, 0) for phase in costs.values()) for key in (*kinds, "cpu_s", "wall_s")}
    total["peak_bytes"] = max(phase["peak_bytes"] for phase in costs.values())
    lines = [
        f"| phase | {' | '.join(kinds)} | GET a file | CPU s | CPU ms a file | wall s | peak MB |",
        f"|--|{'--:|' * (len(kinds) + 5)}",
    ]
    for name, phase in {**costs, "all": total}.items():
        requests = " | ".join(f"{phase.get(kind, 0):,}" for kind in kinds)
        cpu_s, gets = phase["cpu_s"], phase.get("GET", 0) / num_files
        times = f"{cpu_s:.2f} | {1e3 * cpu_s / num_files:.2f} | {phase['wall_s']:.1f}"
        lines.append(f"| {name} | {requests} | {gets:.2f} | {times} | {phase['peak_bytes'] / 1e6:.0f} |")
    return lines


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
    parser.add_argument("--files", type=int, nargs="+", metavar="N", help="measure a run on an output of N files")
    parser.add_argument("--step", choices=["make", "measure"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--memory-rows", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step and args.files:
        make_output(args.folder, *args.files) if args.step == "make" else measure_files(args.folder)
    elif args.files:
        report_files(args.files)
    elif args.step == "measure":
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
