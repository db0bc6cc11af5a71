"""What it costs to resume, in two ways.

The opening: ``python -m benchmarks.bench_resume --rows 1000000 10000000 --files 500 5000``, for each number of rows of
a manifest and each of files that hold all but ``--new`` of them: from the lock to the list of pending rows, by phase.
The manifest is Parquet, its ids text of 24 characters (``--int-ids``: integers); the output holds them in random
order, and no detections, which a resume does not read. ``--against FOLDER`` measures another checkout beside this one,
``--compact`` the same output once more when its small files are joined.

A whole run: ``python -m benchmarks.bench_resume --files 1000 5000 50000``, from its first request to its last, on an
output of so many small files of which none changes, with rounds that only write a few more; the pictures of the page
are drawn in another process.

Requests are those that an object store would get for the output, counted; the files are on this disk, in the page
cache. Each measurement is a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
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
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

ROW_GROUP_ROWS = 100_000
ROW_GROUPS_PER_FILE = 10
ID_LETTERS = 24
LIMIT_S = 900
ROOT = Path(__file__).resolve().parents[1]

ROWS_PER_SMALL_FILE = 20
NEW_FILES = 10
ONE_IN_FAILED = 50  # files with failed images
CLASSES = 80
KINDS = ("LIST", "GET", "HEAD", "PUT", "DELETE")


def make_opening(folder: Path, num_rows: int, num_files: int, num_new: int, int_ids: bool) -> None:
    """``manifest/*.parquet`` and ``out/data/*.parquet``."""
    from pipeline.annotations.data_folder import DATA_FOLDER

    make = int_ids_of if int_ids else text_ids_of
    order = np.random.default_rng(0).permutation(np.arange(num_rows, dtype=np.int32))[num_new:]
    data = folder / "out" / DATA_FOLDER
    data.mkdir(parents=True)
    patterns: dict[int, tuple[bytes, list[tuple[int, int]]]] = {}
    for number, part in enumerate(np.array_split(order, num_files)):
        if len(part) not in patterns:
            patterns[len(part)] = opening_pattern(make, len(part))
        content, places = patterns[len(part)]
        plain = plain_ids(make(part))
        whole, start = bytearray(content), 0
        for place, length in places:
            whole[place : place + length] = plain[start : start + length]
            start += length
        (data / f"part-{number:020x}.parquet").write_bytes(whole)
    del order
    (folder / "manifest").mkdir()
    schema = pa.schema([("image_id", make(np.arange(1)).type), ("image_uri", pa.string())])
    rows_per_file = ROW_GROUP_ROWS * ROW_GROUPS_PER_FILE
    for first in range(0, num_rows, rows_per_file):
        with pq.ParquetWriter(folder / f"manifest/{first:012d}.parquet", schema, compression="zstd") as writer:
            for start in range(first, min(first + rows_per_file, num_rows), ROW_GROUP_ROWS):
                ids = make(np.arange(start, min(start + ROW_GROUP_ROWS, num_rows)))
                texts = ids.cast(pa.string())
                uris = pa.compute.binary_join_element_wise("s3://some-bucket/images/", texts, ".jpg", "")
                writer.write_table(pa.table([ids, uris], schema=schema))


def compact_opening(folder: Path) -> None:
    """Join the small files as ``maskfleet compact`` does, and print how many there are then, and how long it took."""
    from pipeline.annotations.compact import compact
    from pipeline.storage.uris import Uri

    began, uri = time.perf_counter(), Uri(str(folder / "out"))
    compact(uri)
    seconds = time.perf_counter() - began
    print(f"in {seconds:.0f} s joined into {len(list((folder / 'out/data').iterdir())):,}")


def int_ids_of(numbers: np.ndarray) -> pa.Array:
    """Int64 ids, as sparse as those of many data sets."""
    return pa.array(numbers.astype(np.int64) * 37)


def text_ids_of(numbers: np.ndarray) -> pa.Array:
    """In no order: a multiplication that no two numbers share scatters them."""
    scattered = (numbers.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)).astype(">u8")
    digits = scattered.view(np.uint8).reshape(-1, 8)
    letters = np.empty((len(numbers), ID_LETTERS), np.uint8)
    hexadecimal = np.frombuffer(b"0123456789abcdef", np.uint8)
    letters[:, 0:16:2], letters[:, 1:16:2] = hexadecimal[digits >> 4], hexadecimal[digits & 15]
    letters[:, 16] = ord("/")
    rest = (scattered.astype(np.uint64) % np.uint64(997)).astype(np.int64)
    for place in range(ID_LETTERS - 1, 16, -1):
        rest, letters[:, place] = rest // 10, rest % 10 + ord("0")
    offsets = ID_LETTERS * np.arange(len(numbers) + 1, dtype=np.int32)
    return pa.StringArray.from_buffers(len(numbers), pa.py_buffer(offsets), pa.py_buffer(letters))


def plain_ids(ids: pa.Array) -> bytes:
    """As Parquet encodes the ids of `int_ids_of` and `text_ids_of`."""
    if pa.types.is_integer(ids.type):
        return ids.to_numpy().astype("<i8").tobytes()
    letters = np.frombuffer(ids.buffers()[2], np.uint8).reshape(-1, ID_LETTERS)
    lengths = np.broadcast_to(np.array([ID_LETTERS, 0, 0, 0], np.uint8), (len(letters), 4))
    return np.hstack([lengths, letters]).tobytes()


def opening_pattern(make: Callable[[np.ndarray], pa.Array], num_rows: int) -> tuple[bytes, list[tuple[int, int]]]:
    """A data file of images on which nothing was found; and where its ids stand: place and length of each piece.

    It is made once, since a file takes milliseconds to be encoded; see `file_pattern`.
    """
    from pipeline.annotations import data_file
    from pipeline.annotations.schema import ANNOTATED, output_schema

    ids = make(np.arange(num_rows))
    schema = output_schema(ids.type)
    known = {"image_id": ids, "status": pa.array([ANNOTATED] * num_rows)}
    known["detections"] = pa.array([[]] * num_rows, schema.field("detections").type)
    table = pa.table([known.get(field.name, pa.nulls(num_rows, field.type)) for field in schema], schema=schema)
    identity = data_file.Identity("bench", "0" * 64, "0" * 64, "{}", "bench", "20260101T000000-00000000")
    sink = pa.BufferOutputStream()
    pq.write_table(
        table.replace_schema_metadata(
            data_file._metadata(identity, data_file.Counts.of(table), {identity.run_id: table.num_rows})
        ),
        sink,
        row_group_size=data_file.ROWS_PER_GROUP,
        compression={name: "none" if name == "image_id" else "zstd" for name in _leaves(schema)},
        use_dictionary=[name for name in _leaves(schema) if name != "image_id"],
        write_statistics=[name for name in data_file._STATISTICS_COLUMNS if name != "image_id"],
    )
    content, places = sink.getvalue().to_pybytes(), []
    made = pq.read_metadata(pa.BufferReader(content))
    length_of_one = len(plain_ids(ids)) // num_rows
    for group in range(made.num_row_groups):
        chunk = made.row_group(group).column(0)
        length = made.row_group(group).num_rows * length_of_one
        places.append((chunk.data_page_offset + chunk.total_compressed_size - length, length))
    assert b"".join(content[place : place + length] for place, length in places) == plain_ids(ids)
    return content, places


def measure_opening(folder: Path) -> None:
    """Print the costs by phase as JSON; ``pending`` is how many rows there are to do."""
    from pipeline.annotate.config import ManifestConfig
    from pipeline.annotate.manifest.open import open_manifest
    from pipeline.annotate.pending import antijoin
    from pipeline.annotations.ledger import OutputStore
    from pipeline.storage.uris import Uri
    from testing.store_requests import counted_requests

    with counted_requests() as requests, mock.patch("tempfile.tempdir", str(folder)):
        phases = Phases(requests)
        reads = phases.each("ids", OutputStore.iter_ids)
        in_manifest = phases.each("manifest ids", antijoin._ManifestSide.parts)
        with (
            mock.patch.object(OutputStore, "iter_ids", reads),
            mock.patch.object(antijoin._ManifestSide, "parts", in_manifest),
        ):
            store = OutputStore(Uri(str(folder / "out")))
            phases.begin("footers")
            store.recover(lambda: None)
            phases.begin("manifest")
            manifest = open_manifest(ManifestConfig(uri=Uri(str(folder / "manifest"))), Uri(str(folder / "scratch")))
            phases.begin("list")
            files = store.files()
            phases.begin("join")
            pending = antijoin.Audit(manifest, store).look(files)
            phases.begin("")
    print(json.dumps({**phases.costs(), "pending": pending.num_pending}))


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
        waiting: list[pa.Array] = []
        for number in range(num_files + NEW_FILES):
            ids = text_ids_of(np.arange(number * ROWS_PER_SMALL_FILE, (number + 1) * ROWS_PER_SMALL_FILE))
            waiting.append(ids)
            if number < num_files:
                before, after = good if number % ONE_IN_FAILED else bad
                name = data_file_name(pa.chunked_array([ids]))
                (data / name).write_bytes(before + plain_ids(ids) + after)
            # Each new file is of a unit of its own.
            if len(waiting) * ROWS_PER_SMALL_FILE >= ROW_GROUP_ROWS or number >= num_files - 1:
                some = pa.concat_arrays(waiting)
                uris = pa.compute.binary_join_element_wise("/nowhere/", some, ".jpg", "")
                writer.write_table(pa.table([some, uris], schema=schema))
                waiting = []


def file_pattern(identity: Any, with_failures: bool) -> tuple[bytes, bytes]:
    """What is before the ids of a file, and after them: written once, since a file takes milliseconds to be encoded.

    Ids are not compressed, and there are no checksums, as in files of earlier releases.
    """
    from pipeline.annotations import data_file

    ids = text_ids_of(np.arange(ROWS_PER_SMALL_FILE))
    table = rows_of(ids, with_failures)
    metadata = data_file._metadata(identity, data_file.Counts.of(table), {identity.run_id: table.num_rows})
    sink = pa.BufferOutputStream()
    pq.write_table(
        table.replace_schema_metadata(metadata),
        sink,
        compression={name: "none" if name == "image_id" else "zstd" for name in _leaves(table.schema)},
        use_dictionary=data_file._DICTIONARY_COLUMNS,
        write_statistics=[name for name in data_file._STATISTICS_COLUMNS if name != "image_id"],
    )
    before, after = sink.getvalue().to_pybytes().split(plain_ids(ids))
    return before, after


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
        self._phase, self._before = phase, now

    def around(self, phase: str, after: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, as a phase."""

        def timed(*args: Any, **options: Any) -> Any:
            self.begin(phase)
            try:
                return call(*args, **options)
            finally:
                self.begin(after)

        return timed

    def each(self, name: str, call: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
        """The same function, the waiting for whose items counts under a name of its own, and not in the phase."""

        def timed(*args: Any, **options: Any) -> Iterator[Any]:
            items = call(*args, **options)
            apart = self._costs.setdefault(name, Counter())
            while True:
                began = time.perf_counter(), time.process_time()
                item = next(items, None)
                now = time.perf_counter(), time.process_time()
                spent = Counter({"wall_s": now[0] - began[0], "cpu_s": now[1] - began[1]})
                apart.update(spent)
                self._before.update(spent)
                if item is None:
                    return
                yield item

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


def run_step(*arguments: str, root: Path = ROOT, limit_s: float | None = None) -> str:
    """One step in a process of its own. This one stays small: Linux lets a child inherit its peak.

    Args:
        arguments: of this command.
        root: the checkout whose code is measured.
        limit_s: on its time.

    Raises:
        subprocess.TimeoutExpired: it was not enough.
    """
    command = [sys.executable, __file__, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, timeout=limit_s, cwd=root, env=environment
    )
    return done.stdout


PHASES = ("footers", "manifest", "list", "ids", "manifest ids", "join")


def report_opening(args: argparse.Namespace) -> None:
    """Measure each number of rows with each of files, in each checkout, and print the table."""
    checkouts = {"before": args.against, "": ROOT} if args.against else {"": ROOT}
    print(
        f"| rows | files | {' | '.join(f'{name} s' for name in PHASES)} | all s | CPU s | peak MB | LIST | GET |\n"
        f"|--:|--:|{'--:|' * (len(PHASES) + 5)}",
        flush=True,
    )
    for num_rows in args.rows:
        for num_files in args.files:
            with tempfile.TemporaryDirectory(prefix="bench-resume-", dir=args.folder) as name:
                shape = ["--rows", str(num_rows), "--files", str(num_files), "--new", str(args.new)]
                step = (*shape, *(["--int-ids"] if args.int_ids else []), "--folder", name, "--step")
                run_step(*step, "make")
                for label, root in checkouts.items():
                    print(opening_line(num_rows, num_files, label, args.new, step, root), flush=True)
                if args.compact:
                    label = run_step(*step, "compact").strip()
                    print(opening_line(num_rows, num_files, label, args.new, step, ROOT), flush=True)
    from benchmarks.support.machine import describe  # imports torch, whose memory the children would inherit

    print(f"\n{describe()}, pyarrow {pa.__version__}; {args.new:,} rows to do, {'int' if args.int_ids else 'text'} ids")


def opening_line(num_rows: int, num_files: int, label: str, num_new: int, step: tuple[str, ...], root: Path) -> str:
    """Of one measurement; or that it took too long."""
    start = f"| {num_rows:,} | {num_files:,}{f', {label}' if label else ''} |"
    try:
        figures = json.loads(run_step(*step, "measure", root=root, limit_s=LIMIT_S))
    except subprocess.TimeoutExpired:
        return f"{start} more than {LIMIT_S} s |"
    assert figures.pop("pending") == num_new
    total = {key: sum(phase.get(key, 0) for phase in figures.values()) for key in ("wall_s", "cpu_s", "LIST", "GET")}
    seconds = [figures.get(name, {}).get("wall_s", 0.0) for name in PHASES]
    peak = max(phase.get("peak_bytes", 0) for phase in figures.values())
    times = " | ".join(f"{each:.1f}" for each in (*seconds, total["wall_s"], total["cpu_s"]))
    return f"{start} {times} | {peak / 1e6:.0f} | {total['LIST']:,} | {total['GET']:,} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, nargs="+", metavar="N", required=True, help="of the output")
    parser.add_argument("--rows", type=int, nargs="+", metavar="N", help="of the manifest; none: whole runs")
    parser.add_argument("--new", type=int, default=300_000, metavar="N", help="rows that the output does not hold")
    parser.add_argument("--int-ids", action="store_true", help="integers, not text")
    parser.add_argument("--against", type=Path, metavar="FOLDER", help="another checkout, measured beside this one")
    parser.add_argument("--compact", action="store_true", help="join the small files, and measure again")
    parser.add_argument("--folder", type=Path, help="where to make the files, instead of the system's own place")
    parser.add_argument("--step", choices=["make", "measure", "compact"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step and args.rows:
        (num_rows,), (num_files,) = args.rows, args.files
        if args.step == "make":
            make_opening(args.folder, num_rows, num_files, args.new, args.int_ids)
        elif args.step == "measure":
            measure_opening(args.folder)
        else:
            compact_opening(args.folder)
    elif args.step:
        make_output(args.folder, *args.files) if args.step == "make" else measure_files(args.folder)
    elif args.rows:
        report_opening(args)
    else:
        report_files(args.files)


if __name__ == "__main__":
    main()
