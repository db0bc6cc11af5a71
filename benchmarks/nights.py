"""A year of nights in small: ``python -m benchmarks.nights --nights 100 --seed 0 [--s3] [--ray]``.

A bucket of pictures, a local folder or S3 (moto), in which some are new each night, some replaced, some gone and some
damaged; and the annotate job, which lists it and compares (``manifest.compare``, ``manifest.deleted``). Every third
night the run is killed, at a request or at any moment, half the time the bucket changes once more, and the same command
goes on; now and then the bucket changes between listing and reading, and while the rows are made. After each night:

- the rows equal those of a first run over the bucket of that night, all columns but ``run_id``;
- they are those of the pictures that are there: none missing, none twice, none too many, and of each the right content;
- the books close, and nothing waits in ``changed/``.

Without Ray a function that reads the pictures stands for the rounds, and all else is the job's own code; runs that
are killed are processes of their own. With ``--ray`` it is the whole job with a small model, minutes a night.

Prints a line a night and the sums; exit code 1 if anything is off.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
from PIL import Image

from pipeline.annotate import run as job
from pipeline.annotate.config import AnnotateConfig
from pipeline.annotations.compact import compact
from pipeline.annotations.data_file import Counts
from pipeline.annotations.ledger import CHANGED_FOLDER, OutputStore
from pipeline.annotations.run_json import RunJson
from pipeline.annotations.schema import (
    ANNOTATED,
    DELETED,
    FAILED,
    OBJECT_COLUMNS,
    ImageDetections,
    detections_array,
    output_schema,
)
from pipeline.lake.delta import DeltaOutput
from pipeline.lake.iceberg import IcebergOutput
from pipeline.model.categories import Category
from pipeline.storage.fetch.fetcher import Fetcher
from pipeline.storage.objects.local import LocalObjects
from pipeline.storage.objects.open import open_objects
from pipeline.storage.objects.s3 import S3Objects
from pipeline.storage.uris import Uri, UriText
from testing.output_rows import output_rows
from testing.rounds_without_ray import rounds_without_ray
from testing.s3_server import s3_server

ROOT = Path(__file__).resolve().parents[1]
CATEGORIES = (Category(1, "ball"), Category(2, "tile"), Category(3, "kite"), Category(4, "pebble"))
KILLED_EVERY = 3
LEASE_S = 1.5
READY = "ready"
MAX_REQUESTS = 40  # that change the output, of a night
ANY_MOMENT, BEFORE_COMMIT, AFTER_COMMIT = -1, -2, -3
NOT_A_PICTURE = b"<html><body>404 not found</body></html>"

Row = Mapping[str, Any]


@dataclass
class Bucket:
    """Pictures by their keys, as they are now.

    Attributes:
        uri: of the folder or prefix.
        sizes: height and width of each picture; ``None`` of a damaged one.
    """

    uri: Uri
    rng: random.Random
    sizes: dict[str, tuple[int, int] | None] = field(default_factory=dict)
    num_put: int = 0

    def put(self, keys: Sequence[str], damaged_share: float) -> None:
        """New content under each key, never one that was there before."""
        objects = open_objects(self.uri)
        for key in keys:
            self.num_put += 1
            height, width = self.rng.randint(8, 24), self.rng.randint(8, 24)
            is_damaged = self.rng.random() < damaged_share
            pixels = np.random.default_rng(self.num_put).integers(0, 256, (height, width, 3), np.uint8)
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "png" if key.endswith("png") else "jpeg")
            objects.put(key, NOT_A_PICTURE + str(self.num_put).encode() if is_damaged else buffer.getvalue())
            self.sizes[key] = None if is_damaged else (height, width)

    def change(self, most: int) -> Counter[str]:
        """What a day does to it: how many were put for the first time, replaced and removed."""
        keys = sorted(self.sizes)
        gone = self.rng.sample(keys, min(len(keys) - 1, self.rng.randrange(most)))
        objects = open_objects(self.uri)
        for key in gone:
            objects.delete(key)
            del self.sizes[key]
        replaced = self.rng.sample(sorted(self.sizes), min(len(self.sizes), self.rng.randrange(most)))
        names = (f"day {self.num_put:05d}/{i:02d}.{self.rng.choice(['png', 'jpg'])}" for i in range(10**6))
        new = [next(names) for _ in range(self.rng.randrange(most + 2))]
        self.put([*replaced, *new], 0.15)
        return Counter(new=len(new), replaced=len(replaced), gone=len(gone))


@dataclass(frozen=True)
class Reads:
    """Stands for the stages: rows of pictures from the bytes that are there, of the version that was read."""

    uri: Uri
    beside: Callable[[], object] = lambda: None

    def __call__(self, ids: pa.Array) -> pa.Table:
        """A row for each id; something else happens before they are read, and after."""
        self.beside()
        rows = self._rows(ids)
        self.beside()
        return rows

    def _rows(self, ids: pa.Array) -> pa.Table:
        keys = ids.to_pylist()
        uris = [self.uri.absolute().below(key) for key in keys]
        in_turn = dict(Fetcher().fetch_in_turn([UriText(uri) for uri in uris]))
        fetched = [in_turn[i] for i in range(len(keys))]
        sizes, found, versions = [], [], []
        for each in fetched:
            data, version = (None, None) if isinstance(each, Exception) else each
            size = None if data is None else _size(data)
            sizes.append(size)
            found.append(None if data is None or size is None else _detections(data, size))
            versions.append((None,) * 4 if version is None else version)
        bad = [size is None for size in sizes]
        texts = ("decode", "not_an_image", "cannot be read as an image")
        columns = [
            pa.array(keys, pa.string()),
            pa.array(uris, pa.string()),
            *(pa.array([None if size is None else size[axis] for size in sizes], pa.int32()) for axis in (0, 1)),
            pa.array([None if is_bad else 1 for is_bad in bad], pa.int8()),
            pa.array([FAILED if is_bad else ANNOTATED for is_bad in bad]),
            detections_array(found, [c.id for c in CATEGORIES], [c.name for c in CATEGORIES]),
            *(pa.array([text if is_bad else None for is_bad in bad], pa.string()) for text in texts),
        ]
        table = output_rows(columns)
        for i, name in enumerate(OBJECT_COLUMNS.names):
            column = pa.array([version[i] for version in versions], _stored(name)).cast(table.schema.field(name).type)
            table = table.set_column(table.column_names.index(name), name, column)
        return table.cast(output_schema(pa.string()))


def _stored(name: str) -> pa.DataType:
    return pa.int64() if name in ("object_size", "object_mtime") else pa.string()


def _size(data: bytes) -> tuple[int, int] | None:
    with suppress(OSError), Image.open(io.BytesIO(data)) as picture:
        return picture.height, picture.width
    return None


def _detections(data: bytes, size: tuple[int, int]) -> ImageDetections:
    """Of this content and no other."""
    rng = np.random.default_rng(list(data[-64:]))
    count = int(rng.integers(0, 4))
    return ImageDetections(
        boxes=rng.random((count, 4)).astype(np.float32),
        scores=np.sort(rng.random(count))[::-1].astype(np.float32),
        labels=rng.integers(0, len(CATEGORIES), count),
        areas=rng.integers(1, 100, count).astype(np.float32),
        image_size=size,
        counts=[b"0" * 4] * count,
    )


@dataclass(frozen=True)
class Night:
    """One command: the config, and what it is called with."""

    config: Mapping[str, Any]
    retry_failed: bool = False

    def run(self, beside: Callable[[], object] = lambda: None) -> RunJson:
        """In this process, without Ray and without a page.

        Args:
            beside: see `Reads`.
        """
        config = AnnotateConfig.model_validate(self.config)
        with (
            mock.patch.object(job, "page_at_end", return_value=nullcontext()),
            rounds_without_ray(Reads(config.manifest.uri, beside)),
        ):
            return job.annotate(config, self.retry_failed)

    def killed(self, rng: random.Random, typical_s: float) -> str:
        """In a process of its own, which gets SIGKILL at one of its requests or at any moment; how that came."""
        number = rng.randrange(MAX_REQUESTS) if rng.random() < 0.6 else ANY_MOMENT
        if self.config["output"].get("table") and rng.random() < 0.5:
            number = rng.choice([BEFORE_COMMIT, AFTER_COMMIT])
        task = json.dumps({"config": self.config, "retry_failed": self.retry_failed})
        command = [sys.executable, "-m", "benchmarks.nights", "--child", task, "--dies-at", str(number)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            assert process.stdout is not None
            if process.stdout.readline().strip().decode() != READY:
                raise RuntimeError("a child did not begin")
            if number == ANY_MOMENT:
                time.sleep(rng.uniform(0, 1.5 * typical_s))
                process.kill()
            process.wait()
            return "killed" if process.returncode == -signal.SIGKILL else f"ended with {process.returncode}"


def child(task: Mapping[str, Any], dies_at: int) -> int:
    """A night in this process, which kills itself before or after a request that changes the output, or its table."""
    count = [0]

    def dying_commit(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> None:
            if dies_at == AFTER_COMMIT:
                method(*args)
            os.kill(os.getpid(), signal.SIGKILL)

        return call

    def dying(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(objects: Any, name: str, *args: Any, **options: Any) -> Any:
            count[0] += not name.startswith("_lock")
            if count[0] == dies_at // 2 + 1 and not dies_at % 2:
                os.kill(os.getpid(), signal.SIGKILL)
            result = method(objects, name, *args, **options)
            if count[0] == dies_at // 2 + 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call

    with ExitStack() as stack:
        for kind in (LocalObjects, S3Objects) if dies_at >= 0 else ():
            for name in ("put", "delete"):
                stack.enter_context(mock.patch.object(kind, name, dying(getattr(kind, name))))
        for table in (DeltaOutput, IcebergOutput) if dies_at in (BEFORE_COMMIT, AFTER_COMMIT) else ():
            stack.enter_context(mock.patch.object(table, "commit", dying_commit(table.commit)))
        print(READY, flush=True)
        Night(task["config"], task["retry_failed"]).run()
    return 0


def rows_of(uri: Uri) -> tuple[list[dict[str, Any]], Counts]:
    """All rows of an output, by their ids, without who made them; and what its footers count."""
    store = OutputStore(uri)
    files = store.files()
    tables = list(store.iter_ids(files.settled, None))
    rows = pa.concat_tables(tables).sort_by("image_id").drop_columns(["run_id"]).to_pylist() if tables else []
    return rows, files.counts


def problems(bucket: Bucket, output: Uri, fresh: Sequence[Row], report: RunJson) -> Iterator[str]:
    """What is off after a night.

    Args:
        fresh: rows of a first run over the same bucket.
        report: of the run that ended the night.
    """
    rows, counts = rows_of(output)
    times = Counter(row["image_id"] for row in rows)
    if twice := [key for key, n in times.items() if n > 1]:
        yield f"twice: {twice[:3]}"
    there = [row for row in rows if row["status"] != DELETED]
    keys = {row["image_id"] for row in there}
    if keys != bucket.sizes.keys():
        missing, extra = sorted(bucket.sizes.keys() - keys), sorted(keys - bucket.sizes.keys())
        yield f"missing: {missing[:3]}, too many: {extra[:3]}"
    wanted = {row["image_id"]: row for row in fresh}
    if different := [row["image_id"] for row in there if row != wanted.get(row["image_id"])]:
        yield f"{len(different)} differ: {different[:3]}"
    if wrong := [key for row in there if _found(row) != bucket.sizes.get(key := row["image_id"])]:
        yield f"{len(wrong)} of another content: {wrong[:3]}"
    statuses = Counter(row["status"] for row in rows)
    said = (report.images.manifest, report.images.annotated, report.images.failed, report.images.deleted)
    if said != (len(bucket.sizes), statuses[ANNOTATED], statuses[FAILED], statuses[DELETED]) or not report.state.closed:
        yield f"the books do not close: {report.state}, {said}, there are {len(bucket.sizes)}, {dict(statuses)}"
    if (counts.annotated, counts.failed, counts.deleted) != said[1:]:
        yield f"the footers count {counts}"
    left = [entry.name for entry in open_objects(output / CHANGED_FOLDER).list("data").files]
    if left:
        yield f"left in {CHANGED_FOLDER}: {left}"


def _found(row: Row) -> tuple[int, int] | None:
    return (row["height"], row["width"]) if row["status"] == ANNOTATED else None


@dataclass
class Year:
    """Nights over one bucket.

    Attributes:
        output: of all of them.
        fresh: of first runs, emptied each night.
        table: that the output is published to, as YAML has it; or none.
    """

    bucket: Bucket
    output: Uri
    fresh: Uri
    checkpoint: Path
    compare: str
    rng: random.Random
    table: Mapping[str, Any] | None = None
    typical_s: float = 0.5
    sums: Counter[str] = field(default_factory=Counter)

    def config(self, output: Uri, **manifest: Any) -> dict[str, Any]:
        """As YAML has it."""
        table = self.table if output == self.output else None
        return {
            "manifest": {"uri": str(self.bucket.uri), "format": "folder", "max_deleted_fraction": 1.0, **manifest},
            "model": {"checkpoint": str(self.checkpoint), "batch_size": 2},
            "output": {"uri": str(output), "max_failed_fraction": 1.0, "lease_s": LEASE_S, "table": table},
        }

    def night(self, number: int) -> str:
        """One of them; what is to be said about it."""
        day = self.bucket.change(8)
        deleted = self.rng.choice(["drop", "drop", "mark"])
        night = Night(self.config(self.output, compare=self.compare, deleted=deleted), self.rng.random() < 0.25)
        how = []
        if number % KILLED_EVERY == KILLED_EVERY - 1:
            how.append(night.killed(self.rng, self.typical_s))
            self.sums[how[0]] += 1
            if self.rng.random() < 0.5:
                day += self.bucket.change(4)
                how.append("changed again")
        if self.rng.random() < 0.3:
            report = night.run(lambda: day.update(self.bucket.change(3)))
            how.append("changed while it was read" if report.this_run.rounds else "nothing to read")
        if self.rng.random() < 0.1 and OutputStore.as_last_run(self.output).recover(lambda: None).files.footers:
            compact(self.output)
            how.append("compacted")
        started = time.monotonic()
        report = night.run()
        self.typical_s = time.monotonic() - started
        self._empty(self.fresh)
        Night(self.config(self.fresh)).run()
        found = list(problems(self.bucket, self.output, rows_of(self.fresh)[0], report))
        self.sums += day
        self.sums["off"] += bool(found)
        changes = report.changes
        told = f"{changes.new} new, {changes.changed} changed, {changes.deleted} gone ({deleted})"
        told += "".join(f", {each}" for each in how)
        return f"{number:4d}  {len(self.bucket.sizes):4d} images: {told}  {'; '.join(found) or 'ok'}"

    def _empty(self, uri: Uri) -> None:
        if uri.local_path is not None:
            shutil.rmtree(uri.local_path, ignore_errors=True)
            return
        objects = open_objects(uri)
        for place in ("", "data"):
            for entry in objects.list(place).files:
                objects.delete(f"{place}/{entry.name}".lstrip("/"))


def with_ray(folder: Path, bucket: Bucket, nights: int, rng: random.Random) -> int:
    """The whole job, killed every third night; how many nights were off."""
    from benchmarks.chaos.scene import Job
    from benchmarks.chaos.verdict import judge

    settings = {"manifest": {"compare": "size_mtime", "deleted": "drop", "max_deleted_fraction": 1.0}}
    off = 0
    for number in range(nights):
        day = bucket.change(8)
        nightly = Job(folder, "nightly", bucket.uri.secret_text, settings=settings)
        fresh = Job(folder, f"fresh-{number}", bucket.uri.secret_text)
        try:
            how = ""
            if number % KILLED_EVERY == KILLED_EVERY - 1:
                delay_s = rng.uniform(8, 25)
                nightly.run(lambda process, delay_s=delay_s: _kill_after(process, delay_s))  # type: ignore[misc]
                how = f", killed after {delay_s:.0f} s" if nightly.exit_code < 0 else ", ended before it was killed"
            nightly.run_to_the_end()
            fresh.run_to_the_end()
            rows, report = nightly.read()
            expected = {row["image_id"]: row for row in fresh.read()[0]}
            verdict = judge(rows, report, expected, nightly.exit_code)
            found = [] if verdict.good and not verdict.killed else [str(verdict)]
            found += [
                f"{row['image_id']}: {name} is {row[name]}"
                for row in rows
                for name in OBJECT_COLUMNS.names
                if row[name] != expected.get(row["image_id"], {}).get(name)
            ]
            found += [f"left in {CHANGED_FOLDER}"] * any((nightly.output / CHANGED_FOLDER / "data").glob("part-*"))
            if expected.keys() != bucket.sizes.keys():
                found.append("the fresh run has other images than the bucket")
        finally:
            nightly.clean_up()
            fresh.clean_up()
        off += bool(found)
        print(f"{number:4d}  {len(expected)} images, {dict(day)}{how}  {'; '.join(found) or 'ok'}", flush=True)
    return off


def _kill_after(process: subprocess.Popen[bytes], seconds: float) -> None:
    with suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    process.kill()


def main(argv: Sequence[str] | None = None) -> int:
    """Run; returns an exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.nights", description=__doc__.split("\n")[0])
    parser.add_argument("--nights", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--s3", action="store_true", help="bucket and output on S3 (moto), compared by ETag")
    parser.add_argument("--ray", action="store_true", help="the whole job, with Ray and a small model; local")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--dies-at", type=int, default=ANY_MOMENT, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.child:
        return child(json.loads(args.child), args.dies_at)
    if args.s3 and args.ray:
        parser.error("--ray is local: leave out --s3")
    # Here, since the runs that are killed need no torch.
    from benchmarks.support.random_model import MODEL_SEED, random_model
    from pipeline.model.files.checkpoints import save_checkpoint

    started = time.monotonic()
    rng = random.Random(args.seed)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nights-")))
        root = str(folder)
        if args.s3:
            stack.enter_context(s3_server()).create_bucket("nights")
            root = "s3://nights"
        bucket = Bucket(Uri(f"{root}/images"), rng)
        bucket.put([f"first/{i:02d}.png" for i in range(30)], 0.1)
        if args.ray:
            from benchmarks.chaos.scene import _SETTINGS

            save_checkpoint(replace(random_model(MODEL_SEED), settings=_SETTINGS), folder / "model.safetensors")
            off = with_ray(folder, bucket, args.nights, rng)
            print(f"{args.nights} nights with Ray in {time.monotonic() - started:.0f} s: {off} off")
            return int(off > 0)
        checkpoint = folder / "model.safetensors"
        save_checkpoint(random_model(MODEL_SEED), checkpoint)
        compare = "etag" if args.s3 else "size_mtime"
        places = (Uri(f"{root}/out"), Uri(f"{root}/fresh"))
        year = Year(bucket, *places, checkpoint, compare, rng)
        for number in range(args.nights):
            print(year.night(number), flush=True)
    sums = ", ".join(f"{count} {what}" for what, count in year.sums.items() if what != "off")
    print(f"{args.nights} nights in {time.monotonic() - started:.0f} s ({sums}): {year.sums['off']} off")
    return int(year.sums["off"] > 0)


if __name__ == "__main__":
    sys.exit(main())
