"""The graph of the annotate job on Ray Data; the only module that knows how the stages run.

    read units -> repartition -> fetch + decode -> segment (actors) -> encode ..> gather -> write

Decoded pictures cross as uint8 in blocks of a few model batches. There Ray Data ends: the driver gathers
references to what comes out, and a task writes ``images_per_file`` rows as one file, or fewer that have waited long.
"""

from __future__ import annotations

import functools
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import pyarrow as pa
import ray
from ray.data import DataContext, Dataset
from ray.exceptions import RayError, RayTaskError

from pipeline.annotate.config import AnnotateConfig
from pipeline.annotate.manifest.open import Manifest
from pipeline.annotate.manifest.rules import ReadUnit
from pipeline.annotate.monitor import MonitorClient
from pipeline.annotate.pending.antijoin import Pending
from pipeline.annotate.pool import LIGHT_CPUS, Pool
from pipeline.annotate.stages.encode import Encode
from pipeline.annotate.stages.fetch_decode import FetchDecode
from pipeline.annotate.stages.stage import Stage
from pipeline.annotate.stages.write import Write
from pipeline.annotations.data_file import Identity
from pipeline.annotations.ledger import DataFile, OutputStore
from pipeline.annotations.pictures import PictureSource
from pipeline.cluster.quiet import quiet
from pipeline.model.categories import Category
from pipeline.model.host_memory import keep_freed_memory
from pipeline.model.settings import TestSettings
from pipeline.storage.uris import Uri

# A unit of reading is one task: enough rows to be worth its launch, few enough to spread over the cluster.
ROWS_PER_READ_TASK = 4096
# Ray's own default: a run in which nothing comes out for so long has failed.
_NO_PROGRESS_S = 1800
MAX_WRITES = 8  # at a time: storage answers slowly, and a file is in memory while it is written
_MAX_BLOCKS_WAITING = 16
_THREAD_S = 60.0

logger = logging.getLogger(__name__)

Ref = TypeVar("Ref")


@dataclass(frozen=True)
class RunParts:
    """What the graph is built from, on the driver.

    Attributes:
        manifest: where the tasks read what is pending.
        settings: the model's, completed by the config.
        categories: what the model's labels stand for.
        checkpoint: the model, in the object store.
        schema: columns of the output's files.
        store, identity: the output, and what goes into its files' footers.
        fence: raises where this run may not write any more.
        monitor: handle of the actor that `pipeline.annotate.monitor.start_monitor` started.
        pool: the replicas of the model.
    """

    config: AnnotateConfig
    manifest: Manifest
    settings: TestSettings
    categories: tuple[Category, ...]
    checkpoint: ray.ObjectRef
    schema: pa.Schema
    store: OutputStore
    identity: Identity
    fence: Callable[[], None]
    monitor: Any
    pool: Pool


def build(parts: RunParts, pending: Pending) -> Dataset:
    """A lazy dataset of the output's rows."""
    # Here and not above: the model's packages take seconds to import, and only replicas need them.
    from pipeline.annotate.replica import SegmentActor

    _set_context(parts.config)
    config, settings, pool = parts.config, parts.settings, parts.pool
    block, client = config.images_per_block, MonitorClient(parts.monitor)
    read = functools.partial(_read, manifest=parts.manifest, rows_per_block=block)
    pictures = PictureSource.of_config(config.images)
    sides = (settings.short_side, settings.long_side)
    fetch_decode = FetchDecode(pictures, *sides, client, client.report, config.images.decode_timeout_s)
    fetch = functools.partial(_keeping_memory, stage=fetch_decode)
    encode = Encode(parts.schema, parts.categories, client, client.report)
    tables: dict[str, Any] = {"batch_format": "pyarrow", "zero_copy_batch": True}
    return (
        ray.data.from_arrow(list(_unit_tables(pending)))
        .map_batches(read, batch_size=None, num_cpus=LIGHT_CPUS, **tables)
        .repartition(target_num_rows_per_block=block)
        .map_batches(fetch, batch_size=block, num_cpus=pool.fetch_cpus, **tables)
        .map_batches(
            SegmentActor,
            fn_constructor_args=(parts.checkpoint, config.model, settings, pool, client),
            compute=pool.strategy(),
            batch_size=block,
            num_gpus=pool.gpus or None,
            num_cpus=pool.cpus,
            **tables,
        )
        .map_batches(encode, batch_size=None, compute=pool.encode_strategy(), num_cpus=LIGHT_CPUS, **tables)
    )


class Block(NamedTuple):
    """Rows somewhere in the cluster."""

    ref: Any
    num_rows: int


class Running:
    """A dataset at work. Its blocks are handed out as they come, and their rows stay where they are.

    Args:
        dataset: lazy; it starts here.
    """

    def __init__(self, dataset: Dataset) -> None:
        # What `Dataset.iter_internal_ref_bundles` does. It keeps the executor to itself, and only through that can a
        # dataset be stopped that has no block to give.
        self._executor: Any = dataset._create_executor()
        bundles = dataset._build_bundle_iterator(self._executor)
        self._waiting: queue.Queue[Block | BaseException | None] = queue.Queue(_MAX_BLOCKS_WAITING)
        self._stopped = threading.Event()
        self.ended = False
        self._feeder = threading.Thread(target=self._feed, args=(bundles,), name="blocks", daemon=True)
        self._feeder.start()

    def take(self, timeout_s: float) -> Block | None:
        """The next block, unless none comes in time; none comes any more once ``ended`` is set.

        Raises:
            Exception: that of a stage.
        """
        try:
            block = self._waiting.get(timeout=timeout_s) if timeout_s else self._waiting.get_nowait()
        except queue.Empty:
            return None
        if isinstance(block, BaseException):
            raise block
        self.ended = block is None
        return block

    def stop(self) -> None:
        """End the work; what was not taken is dropped. Nothing, if it has ended."""
        self._stopped.set()
        self._executor.shutdown(force=False)
        self._feeder.join(_THREAD_S)  # none may touch Ray when that ends, see `pipeline.cluster.connect`

    def _feed(self, bundles: Iterator[Any]) -> None:
        try:
            for bundle in bundles:
                for entry in bundle.blocks:
                    self._put(Block(entry.ref, entry.metadata.num_rows))
            self._put(None)
        except BaseException as error:
            self._put(error)

    def _put(self, block: Block | BaseException | None) -> None:
        while not self._stopped.is_set():
            try:
                self._waiting.put(block, timeout=0.5)
                break
            except queue.Full:
                continue


class Gatherer(Generic[Ref]):
    """What waits to be written, in the order in which it came. A file is due when it is full, or has waited too long.

    Args:
        rows_per_file: of a full file; no file has more, and no block may.
        interval_s: the longest that rows wait for others.
        clock: gives seconds.
    """

    def __init__(self, rows_per_file: int, interval_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rows_per_file, self._interval_s, self._clock = rows_per_file, interval_s, clock
        self._waiting: deque[tuple[Ref, int, float]] = deque()
        self.num_rows = 0

    def add(self, ref: Ref, num_rows: int) -> None:
        """A block came."""
        if num_rows:
            self._waiting.append((ref, num_rows, self._clock()))
            self.num_rows += num_rows

    def take(self, everything: bool = False) -> tuple[list[Ref], int]:
        """The blocks of a file that is due, and their rows; none if none is.

        Args:
            everything: whatever waits is due.
        """
        old = bool(self._waiting) and self._clock() - self._waiting[0][2] >= self._interval_s
        if not (everything or old or self.num_rows >= self._rows_per_file):
            return [], 0
        refs: list[Ref] = []
        rows = 0
        while self._waiting and (not refs or rows + self._waiting[0][1] <= self._rows_per_file):
            ref, num_rows, _ = self._waiting.popleft()
            refs.append(ref)
            rows += num_rows
        self.num_rows -= rows
        return refs, rows


class Writes:
    """Tasks that write a file each, a few at a time.

    Attributes:
        num_written: rows of the files that were seen to be written.
    """

    def __init__(self, parts: RunParts) -> None:
        output = parts.config.output
        report = MonitorClient(parts.monitor).report
        self._stage = ray.put(Write(parts.store, parts.identity, output.compression_level, parts.fence, report))
        self._task = ray.remote(_write).options(num_cpus=LIGHT_CPUS, name="write")
        self._gathered: Gatherer[Any] = Gatherer(output.images_per_file, output.write_interval_s)
        self._in_flight: dict[Any, int] = {}
        self.num_written = 0

    def add(self, block: Block) -> None:
        """Rows to be written, now or later."""
        self._gathered.add(*block)

    def go_on(self, everything: bool = False) -> None:
        """Start what is due, and see what is done.

        Args:
            everything: whatever waits is due.

        Raises:
            Exception: that of a file that could not be written.
        """
        while len(self._in_flight) < MAX_WRITES:
            refs, rows = self._gathered.take(everything)
            if not refs:
                break
            self._in_flight[self._task.remote(self._stage, *refs)] = rows
        self._collect(timeout_s=0)

    @property
    def full(self) -> bool:
        """Whether more blocks had better wait where they are."""
        return len(self._in_flight) >= MAX_WRITES

    @property
    def num_open(self) -> int:
        """Files at work."""
        return len(self._in_flight)

    def wait(self, timeout_s: float) -> None:
        """Wait for a file, and see what is done; raises what `go_on` does."""
        self._collect(timeout_s)

    def _collect(self, timeout_s: float) -> None:
        if not self._in_flight:
            return
        enough = 1 if timeout_s else len(self._in_flight)
        done, _ = ray.wait(list(self._in_flight), num_returns=enough, timeout=timeout_s)
        for ref in done:
            rows = self._in_flight.pop(ref)
            try:
                file: DataFile = ray.get(ref)
            except RayError as error:
                reason = error.cause if isinstance(error, RayTaskError) else error
                if not isinstance(reason, RayError):
                    raise reason from error
                # The task's process is lost, or the blocks and all that they could be made of again.
                logger.warning("%d rows were lost before they were written: %s", rows, type(reason).__name__)
            else:
                logger.debug("wrote %s: %d images", file.name, file.num_rows)
                self.num_written += file.num_rows


def _write(stage: Write, *blocks: pa.Table) -> DataFile:
    return stage(pa.concat_tables(blocks))


def _set_context(config: AnnotateConfig) -> None:
    context = quiet(DataContext.get_current())
    # Work has time limits of its own, and an image may use up two of them before any row comes out.
    longest_s = max(config.model.call_timeout_s, config.images.decode_timeout_s)
    context.execution_no_progress_timeout_s = _NO_PROGRESS_S + round(2 * longest_s)
    limit = config.resources.object_store_limit_bytes
    if limit is not None:
        context.execution_options.resource_limits = ray.data.ExecutionResources(object_store_memory=limit)


def _unit_tables(pending: Pending) -> Iterator[pa.Table]:
    """One small table for each read task: where the rows lie, and which of them are wanted."""
    for unit, rows in pending.iter_units():
        for start in range(0, len(rows), ROWS_PER_READ_TASK):
            part = rows[start : start + ROWS_PER_READ_TASK]
            yield pa.table(
                {
                    "file": [unit.file.secret_text],
                    "row_group": [unit.row_group],
                    "num_rows": [unit.num_rows],
                    "rows": pa.array([part], pa.list_(pa.int64())),
                }
            )


def _read(units: pa.Table, manifest: Manifest, rows_per_block: int) -> Iterator[pa.Table]:
    for unit, rows in zip(units.drop_columns(["rows"]).to_pylist(), units["rows"], strict=True):
        yield from manifest.read_rows(ReadUnit(Uri(unit.pop("file")), **unit), rows.values.to_numpy(), rows_per_block)


def _keeping_memory(rows: pa.Table, stage: Stage) -> pa.Table:
    # A block's pictures live together; fresh pages for each would cost a sixth of the stage's CPU time.
    keep_freed_memory()
    return stage(rows)
