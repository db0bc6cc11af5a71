"""The graph of the annotate job on Ray Data; the only module that knows how the stages run.

    read -> fetch + decode -> segment (actors) ..> gather ..> encode + write

Ray Data has the first three, and ends with segmented blocks. Its cost is one of the blocks it sees times the operators,
so nothing is an operator that need not be one: the driver gathers references to what comes out, and a call of a small
actor encodes ``images_per_file`` rows and writes them as one file, or fewer that have waited long.

A row of Ray Data is a block of images: a table of up to ``images_per_block`` rows, packed into one
(:mod:`pipeline.tables.packed`). So blocks are exactly what the tasks give, at once and without a copy, and a task that
is repeated gives the same ones. Of ordinary rows Ray Data makes blocks of its own: it joins what a task gives until
128 MiB have come together (all of a task's small pictures), cuts large blocks, and gives actors several at once. Its
streaming repartition cuts exactly, but within the task before it only if that asks for just one CPU; else it is one
more operator.

Ray ends workers that idle for a second where all CPUs are taken, so a task that comes now and then starts in a new
process: 6 s of CPU where torch and Ray Data are imported, 1.4 s where they are not, and a file is written every 2,048
images. So what writes are actors, which stay while files come, and what reads lies in a module that imports neither.
"""

from __future__ import annotations

import functools
import logging
import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import ray
from ray.data import DataContext, Dataset
from ray.exceptions import RayError, RayTaskError

from pipeline.annotate.config import AnnotateConfig
from pipeline.annotate.manifest.open import Manifest
from pipeline.annotate.monitor import MonitorClient
from pipeline.annotate.pending.antijoin import Pending
from pipeline.annotate.pool import LIGHT_CPUS, Pool
from pipeline.annotate.stages.encode import Encode
from pipeline.annotate.stages.fetch_decode import FetchDecode
from pipeline.annotate.stages.ordering import ROWS_PER_FETCH, ROWS_PER_WINDOW, BatchOrder, read_in_order
from pipeline.annotate.stages.write import FileWriter, Write
from pipeline.annotations.data_file import Identity
from pipeline.annotations.ledger import DataFile, OutputStore
from pipeline.annotations.pictures import PictureSource
from pipeline.cluster.connect import USES_RAY, node_resources
from pipeline.cluster.quiet import quiet
from pipeline.messages.counts import counted
from pipeline.model.categories import Category
from pipeline.model.host_memory import keep_freed_memory
from pipeline.model.settings import TestSettings
from pipeline.tables.packed import packed, unpacked

# A read task looks at no more rows of small row groups than that, however few of them are wanted.
_ROWS_PER_READ_TASK = 64 * ROWS_PER_WINDOW
_TASKS_PER_CPU = 4  # of a run that is small
# Of pictures that stand in the manifest: what is read, and what a task gets.
_READ_BYTES = 16 << 20
# Of the object store, for what is gathered and written. A file's blocks come together on one node.
_FILE_SHARE, _GATHERED_SHARE = 1 / 16, 1 / 8
# Ray writes objects to disk when a node's store is so full (its own default).
_FULL_SHARE = 0.8
# Decoded blocks on a node at a time. Of a fetch task two are taken and two more are made before Ray Data knows how
# large they are; later its rule, half of the store, is the narrower one. Of a replica two are at work and two wait.
_BLOCKS_PER_FETCH, _BLOCKS_PER_REPLICA = 4, 4
_MIB = 1 << 20
_MOST_BLOCK_BYTES = 1 << 30  # Arrow's buffers and Ray's messages hold more, but nothing is won by it
# Two deaths are an image's own (see the guard), and workers die of other causes. What is lost after so many attempts
# comes back in the next round.
_WRITE_RETRIES = 8
# A writer that has had nothing to do for so long ends: it would keep its node from being given back.
_IDLE_S = 60.0
_KILLED_S = 10.0  # of a writer that is ended
# Ray's own default: a run in which nothing comes out for so long has failed.
_NO_PROGRESS_S = 1800
_MAX_BLOCKS_WAITING = 16

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunParts:
    """What the graph is built from, on the driver.

    Attributes:
        manifest: where the tasks read what is pending.
        settings: the model's, completed by the config.
        categories: what the model's labels stand for.
        checkpoint: the model, in the object store.
        checkpoint_bytes: that it takes there, on every node with replicas.
        schema: columns of the output's files.
        identity: what goes into the files' footers.
        fence: raises where this run may not write any more.
        monitor: handle of the actor that `pipeline.annotate.monitor.start_monitor` started.
        pool: the replicas of the model.
    """

    config: AnnotateConfig
    manifest: Manifest
    settings: TestSettings
    categories: tuple[Category, ...]
    checkpoint: ray.ObjectRef
    checkpoint_bytes: int
    schema: pa.Schema
    identity: Identity
    fence: Callable[[], None]
    monitor: Any
    pool: Pool


def build(parts: RunParts, pending: Pending) -> Dataset:
    """A lazy dataset of segmented blocks."""
    # Here and not above: the model's packages take seconds to import, and only replicas need them.
    from pipeline.annotate.replica import SegmentActor

    _set_context(parts.config)
    config, settings, pool = parts.config, parts.settings, parts.pool
    block, client = config.images_per_block, MonitorClient(parts.monitor)
    window, rows = rows_together(parts.manifest, pending, block, ray.cluster_resources().get("CPU", 0.0))
    order = BatchOrder(settings.short_side, settings.long_side, config.model.batch_size, block)
    read = functools.partial(
        read_in_order, manifest=parts.manifest, order=order, window_rows=window, rows_per_task=rows
    )
    pictures = PictureSource.of_config(config.images)
    room = bytes_per_block(config, pool, parts.checkpoint_bytes)
    fetch_decode = FetchDecode(pictures, order, client, client.report, config.images.decode_timeout_s, room)
    fetch = functools.partial(_fetch, stage=fetch_decode)
    tables: dict[str, Any] = {"batch_format": "pyarrow", "zero_copy_batch": True}
    return (
        ray.data.from_arrow(list(_read_tasks(pending)))
        .map_batches(read, batch_size=None, num_cpus=LIGHT_CPUS, **tables)
        .map_batches(fetch, batch_size=None, num_cpus=pool.fetch_cpus, **tables)
        .map_batches(
            SegmentActor,
            fn_constructor_args=(parts.checkpoint, config.model, settings, pool, client),
            compute=pool.strategy(),
            batch_size=1,
            num_gpus=pool.gpus or None,
            num_cpus=pool.cpus,
            **tables,
        )
    )


def rows_together(manifest: Manifest, pending: Pending, rows_per_block: int, cpus: float) -> tuple[int, int]:
    """Rows that are ordered when they are read, and that a task fetches; otherwise as `rows_per_fetch`."""
    rows = rows_per_fetch(pending.num_pending, rows_per_block, cpus)
    if manifest.columns.bytes is None or not pending.packed:
        return ROWS_PER_WINDOW, rows
    (unit, _), *_ = pending.packed  # the pictures themselves are what is read
    window = min(rows, manifest.num_rows_within(unit, _READ_BYTES)) // rows_per_block * rows_per_block
    window = max(rows_per_block, window)
    return window, min(rows, window)


def rows_per_fetch(num_pending: int, rows_per_block: int, cpus: float) -> int:
    """Rows of a task that fetches and decodes: a multiple of a block, and so few that all CPUs get some tasks.

    Args:
        num_pending: images that are to be fetched in all.
        rows_per_block: of what comes out.
        cpus: of the cluster.
    """
    fair = math.ceil(num_pending / (_TASKS_PER_CPU * max(1.0, cpus)))
    return max(1, min(fair, ROWS_PER_FETCH) // rows_per_block) * rows_per_block


def bytes_per_block(config: AnnotateConfig, pool: Pool, checkpoint_bytes: int) -> int:
    """Bytes of pixels of a block, so that a node's object store holds all that are there at a time.

    Beside them are the model, and what is gathered to be written.
    """
    blocks = 0.0
    largest = math.inf
    for node in node_resources():
        cpus, gpus, store = (node.get(name, 0.0) for name in ("CPU", "GPU", "object_store_memory"))
        replicas = int(gpus / pool.gpus + 1e-6) if pool.gpus else int(cpus / (pool.cpus or 1.0) + 1e-6)
        replicas = min(replicas, pool.max_actors)
        fetches = int(max(0.0, cpus - pool.cpus * replicas) / pool.fetch_cpus)
        here = max(_BLOCKS_PER_FETCH * fetches + 2 * replicas, _BLOCKS_PER_REPLICA * replicas)
        if here and store:
            largest = min(largest, ((_FULL_SHARE - _GATHERED_SHARE) * store - checkpoint_bytes) / here)
        blocks += here
    limit = config.resources.object_store_limit_bytes
    if limit is not None and blocks:
        largest = min(largest, (1 - _GATHERED_SHARE) * limit / blocks)
    return max(1, int(min(largest, _MOST_BLOCK_BYTES)))


def warn_of_store(config: AnnotateConfig, settings: TestSettings, pool: Pool, checkpoint_bytes: int) -> str:
    """What to do where blocks of so many bytes would be less than a batch of the model; "" where they are not."""
    room, batch = bytes_per_block(config, pool, checkpoint_bytes), config.model.batch_size
    if room >= batch * 3 * settings.short_side * settings.long_side:
        return ""
    return (
        f"a node's object store has room for blocks of {room / _MIB:.1f} MiB beside the model: pictures of more than "
        f"{room / batch / _MIB:.2f} MiB of pixels do not fill a batch of {batch}; give Ray a larger store "
        "(--object-store-memory, /dev/shm), or fetch in fewer tasks (a higher resources.fetch_cpus_per_task)"
    )


class Block(NamedTuple):
    """Packed rows somewhere in the cluster."""

    ref: Any
    num_bytes: int


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
        threading.Thread(target=self._feed, args=(bundles,), name=f"{USES_RAY}blocks", daemon=True).start()

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

    def _feed(self, bundles: Iterator[Any]) -> None:
        try:
            for bundle in bundles:
                for entry in bundle.blocks:
                    self._put(Block(entry.ref, entry.metadata.size_bytes or 0))
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


class Gatherer:
    """What waits to be written, in the order in which it came, whatever task or unit it is of.

    A file is due when it is full, or has waited too long.

    Args:
        blocks_per_file: of a full file; no file has more.
        bytes_per_file: of a file that is full as well; only a single block may be larger.
        interval_s: the longest that blocks wait for others.
        clock: gives seconds.
    """

    def __init__(
        self,
        blocks_per_file: int,
        bytes_per_file: float,
        interval_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._blocks_per_file, self._bytes_per_file = blocks_per_file, bytes_per_file
        self._interval_s, self._clock = interval_s, clock
        self._waiting: deque[tuple[Block, float]] = deque()
        self.num_bytes = 0

    def add(self, block: Block) -> None:
        """A block came."""
        self._waiting.append((block, self._clock()))
        self.num_bytes += block.num_bytes

    def take(self, everything: bool = False) -> list[Block]:
        """The blocks of a file that is due; none if none is.

        Args:
            everything: whatever waits is due.
        """
        full = len(self._waiting) >= self._blocks_per_file or self.num_bytes >= self._bytes_per_file
        old = bool(self._waiting) and self._clock() - self._waiting[0][1] >= self._interval_s
        if not (everything or old or full):
            return []
        blocks: list[Block] = []
        size = 0
        while self._waiting and len(blocks) < self._blocks_per_file:
            size += self._waiting[0][0].num_bytes
            if blocks and size > self._bytes_per_file:
                break
            blocks.append(self._waiting.popleft()[0])
        self.num_bytes -= sum(block.num_bytes for block in blocks)
        return blocks


class Writes:
    """Files that are encoded and written, a few at a time, each by a process that has nothing else to do.

    Attributes:
        max_open: files at a time.
        num_written: rows of the files that were seen to be written.
    """

    def __init__(self, parts: RunParts, store: OutputStore) -> None:
        config, output, client = parts.config, parts.config.output, MonitorClient(parts.monitor)
        encode = Encode(parts.schema, parts.categories, client, client.report)
        write = Write(store, parts.identity, output.compression_level, parts.fence, client.report_now)
        writers = ray.remote(FileWriter).options(
            num_cpus=LIGHT_CPUS, max_restarts=-1, max_task_retries=_WRITE_RETRIES, scheduling_strategy="SPREAD"
        )
        self._new_writer: Callable[[], Any] = functools.partial(writers.remote, encode, write)
        self._idle: deque[tuple[Any, float]] = deque()
        stores = [num_bytes for node in node_resources() if (num_bytes := node.get("object_store_memory"))]
        self._max_bytes = _GATHERED_SHARE * (config.resources.object_store_limit_bytes or sum(stores))
        bytes_per_file = min(_FILE_SHARE * min(stores), self._max_bytes / 2)
        blocks_per_file = output.images_per_file // config.images_per_block
        self._gathered = Gatherer(blocks_per_file, bytes_per_file, output.write_interval_s)
        self._in_flight: dict[Any, tuple[Any, list[Block]]] = {}
        self._bytes_in_flight = 0
        self.max_open = parts.pool.max_writes
        self.num_written = 0

    def add(self, block: Block) -> None:
        """Rows to be written, now or later."""
        self._gathered.add(block)

    def go_on(self, everything: bool = False) -> None:
        """Start what is due, and see what is done.

        Args:
            everything: whatever waits is due.

        Raises:
            Exception: that of a file that could not be written.
        """
        while self.num_open < self.max_open and (blocks := self._gathered.take(everything)):
            # The one that was used last: the others end if they are not needed.
            writer = self._idle.pop()[0] if self._idle else self._new_writer()
            self._in_flight[writer.write.remote(*(block.ref for block in blocks))] = writer, blocks
            self._bytes_in_flight += sum(block.num_bytes for block in blocks)
        self._collect(timeout_s=0)

    @property
    def full(self) -> bool:
        """Whether more blocks had better wait where they are."""
        return self.num_open >= self.max_open or self._gathered.num_bytes + self._bytes_in_flight >= self._max_bytes

    @property
    def num_open(self) -> int:
        """Files at work."""
        return len(self._in_flight)

    def wait(self, timeout_s: float) -> None:
        """Wait for a file, and see what is done; raises what `go_on` does."""
        self._collect(timeout_s)

    def give_up(self) -> None:
        """None of the files at work comes any more: another round may write their rows in other files."""
        for writer, _ in self._in_flight.values():
            ray.kill(writer)
        for ref, (_, blocks) in self._in_flight.items():
            with suppress(RayError):
                file: DataFile = ray.get(ref, timeout=_KILLED_S)  # it was done just now; else its process is gone now
                self.num_written += file.num_rows
                continue
            logger.warning("%s not written: they wait for a node that is gone", counted(len(blocks), "block"))
        self._in_flight.clear()

    def _collect(self, timeout_s: float) -> None:
        while self._idle and time.monotonic() - self._idle[0][1] > _IDLE_S:
            self._idle.popleft()  # Ray ends an actor that nobody knows of
        if not self._in_flight:
            return
        enough = 1 if timeout_s else len(self._in_flight)
        done, _ = ray.wait(list(self._in_flight), num_returns=enough, timeout=timeout_s)
        for ref in done:
            writer, blocks = self._in_flight.pop(ref)
            self._idle.append((writer, time.monotonic()))
            self._bytes_in_flight -= sum(block.num_bytes for block in blocks)
            try:
                file: DataFile = ray.get(ref)
            except RayError as error:
                reason = error.cause if isinstance(error, RayTaskError) else error
                if not isinstance(reason, RayError):
                    raise reason from error
                # The process is lost again and again, or the blocks and all that they could be made of again.
                logger.warning("%s lost before being written: %s", counted(len(blocks), "block"), type(reason).__name__)
            else:
                logger.debug("wrote %s: %d images", file.name, file.num_rows)
                self.num_written += file.num_rows


def _set_context(config: AnnotateConfig) -> None:
    context = quiet(DataContext.get_current())
    # Work has time limits of its own, and an image may use up two of them before any row comes out.
    longest_s = max(config.model.call_timeout_s, config.images.decode_timeout_s)
    context.execution_no_progress_timeout_s = _NO_PROGRESS_S + round(2 * longest_s)
    # A replica takes long to start: none is ended because the others keep up, for that may change with the next block.
    context.autoscaling_config.actor_pool_util_downscaling_threshold = -1.0
    context.target_max_block_size = 1  # byte: every row that a task gives is more, and so a block of its own
    limit = config.resources.object_store_limit_bytes
    if limit is not None:
        within = ray.data.ExecutionResources(object_store_memory=round((1 - _GATHERED_SHARE) * limit))
        context.execution_options.resource_limits = within


def _read_tasks(pending: Pending) -> Iterator[pa.Table]:
    """One small table for each task that reads: row groups, and a bit a row for which are wanted.

    A row group is read by one task, once, however large it is; small ones come together.
    """
    units: list[dict[str, Any]] = []
    wanted = looked_at = 0
    for unit, bits in pending.packed:
        units.append(
            {
                "file": unit.file.secret_text,
                "row_group": unit.row_group,
                "num_rows": unit.num_rows,
                "wanted": bits.tobytes(),
            }
        )
        wanted += int(np.unpackbits(bits).sum())
        looked_at += unit.num_rows
        if wanted >= ROWS_PER_WINDOW or looked_at >= _ROWS_PER_READ_TASK:
            yield pa.Table.from_pylist(units)
            units, wanted, looked_at = [], 0, 0
    if units:
        yield pa.Table.from_pylist(units)


def _fetch(rows: pa.Table, stage: FetchDecode) -> Iterator[pa.Table]:
    """Blocks of decoded pictures, packed."""
    # Pictures live together for a while; fresh pages for each would cost a sixth of the stage's CPU time.
    keep_freed_memory()
    yield from map(packed, stage(unpacked(rows)))
