"""The graph of the annotate job on Ray Data; the only module that knows how the stages run.

    read units -> repartition -> fetch + decode -> segment (actors) -> encode -> repartition -> write

Decoded pictures cross as uint8 in blocks of a few model batches; results are gathered into blocks of
``images_per_file`` rows, and each of those becomes one file, whole or not at all.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.data import DataContext, Dataset

from pipeline.annotate.config import AnnotateConfig
from pipeline.annotate.manifest.open import Manifest, ReadUnit
from pipeline.annotate.monitor import MonitorClient
from pipeline.annotate.pending.antijoin import Pending
from pipeline.annotate.stages.encode import Encode
from pipeline.annotate.stages.fetch_decode import FetchDecode
from pipeline.annotations.ledger import Identity, OutputStore
from pipeline.cluster.connect import Pool
from pipeline.model.host_memory import keep_freed_memory
from pipeline.model.settings import TestSettings
from pipeline.storage.fetch.fetcher import Fetcher

# A unit of reading is one task: enough rows to be worth its launch, few enough to spread over the cluster.
ROWS_PER_READ_TASK = 4096
# Reading, encoding and writing are light, and several of them fit beside a fetch task on one core.
LIGHT_CPUS = 0.25


@dataclass(frozen=True)
class RunParts:
    """All that the graph's workers need. Everything in it pickles, and nothing in it is a secret."""

    config: AnnotateConfig
    manifest: Manifest
    settings: TestSettings
    encode: Encode
    store: OutputStore
    identity: Identity
    fence: Callable[[], None]
    checkpoint: ray.ObjectRef
    monitor: Any
    pool: Pool


def build(parts: RunParts, pending: Pending) -> Dataset:
    """A lazy dataset of one row per written file: ``name``, ``num_rows``, ``size_bytes``."""
    # Here and not above: the model's packages take seconds to import, and only replicas need them.
    from pipeline.annotate.replica import SegmentActor

    _set_context(parts.config)
    resources, block = parts.config.resources, parts.config.images_per_block
    read = functools.partial(_read, manifest=parts.manifest, rows_per_block=block)
    fetch = functools.partial(
        _fetch_decode, stage=fetch_decode_stage(parts.config, parts.settings), monitor=parts.monitor
    )
    encode = functools.partial(_encode, stage=parts.encode, monitor=parts.monitor)
    write = functools.partial(_write, parts=parts)
    tables: dict[str, Any] = {"batch_format": "pyarrow", "zero_copy_batch": True}
    return (
        ray.data.from_arrow(list(_unit_tables(pending)))
        .map_batches(read, batch_size=None, num_cpus=LIGHT_CPUS, **tables)
        .repartition(target_num_rows_per_block=block)
        .map_batches(fetch, batch_size=block, num_cpus=resources.fetch_cpus_per_task, **tables)
        .map_batches(
            SegmentActor,
            fn_constructor_args=(parts,),
            compute=parts.pool.strategy(),
            batch_size=block,
            num_gpus=parts.pool.gpus or None,
            num_cpus=parts.pool.cpus,
            **tables,
        )
        .map_batches(encode, batch_size=None, num_cpus=LIGHT_CPUS, **tables)
        # strict: without it, blocks smaller than a file are passed on as they are
        .repartition(target_num_rows_per_block=parts.config.output.images_per_file, strict=True)
        .map_batches(write, batch_size=None, num_cpus=LIGHT_CPUS, **tables)
    )


def fetch_decode_stage(config: AnnotateConfig, settings: TestSettings) -> FetchDecode:
    """The stage as a config asks for it, for a model with these settings."""
    return FetchDecode(
        Fetcher(config.images.fetch_settings(), config.images.access_policy()),
        config.images.max_pixels,
        config.images.apply_exif,
        settings.short_side,
        settings.long_side,
    )


def _set_context(config: AnnotateConfig) -> None:
    context = DataContext.get_current()
    context.enable_progress_bars = False  # the run prints its own line
    context.print_on_execution_start = False
    limit = config.resources.object_store_limit_bytes
    if limit is not None:
        context.execution_options.resource_limits = ray.data.ExecutionResources(object_store_memory=limit)


def _unit_tables(pending: Pending) -> Iterator[pa.Table]:
    """One small table for each read task: where the rows lie, and which of them are wanted."""
    for unit, rows in pending.iter_units():
        for start in range(0, len(rows), ROWS_PER_READ_TASK):
            part = np.ascontiguousarray(rows[start : start + ROWS_PER_READ_TASK], np.int64)
            yield pa.table(
                {
                    "file": [unit.file],
                    "row_group": [unit.row_group],
                    "num_rows": [unit.num_rows],
                    "rows": [part.tobytes()],
                }
            )


def _read(units: pa.Table, manifest: Manifest, rows_per_block: int) -> Iterator[pa.Table]:
    for unit in units.to_pylist():
        rows = np.frombuffer(unit.pop("rows"), np.int64)
        yield from manifest.read_rows(ReadUnit(**unit), rows, rows_per_block)


def _fetch_decode(rows: pa.Table, stage: FetchDecode, monitor: Any) -> pa.Table:
    # A block's pictures live together; fresh pages for each would cost a sixth of the stage's CPU time.
    keep_freed_memory()
    client = _client(monitor)
    return stage(rows, client, client.report)


def _encode(rows: pa.Table, stage: Encode, monitor: Any) -> pa.Table:
    return stage(rows, _client(monitor).report)


def _write(rows: pa.Table, parts: RunParts) -> pa.Table:
    client = _client(parts.monitor)
    started = time.perf_counter()
    file = parts.store.write_rows(
        rows, parts.identity, compression_level=parts.config.output.compression_level, fence=parts.fence
    )
    client.report({"write_s": time.perf_counter() - started, "written": file.num_rows, "files": 1})
    return pa.table({"name": [file.name], "num_rows": [file.num_rows], "size_bytes": [file.size_bytes]})


@functools.lru_cache(maxsize=1)
def _client(monitor: Any) -> MonitorClient:
    """One client for each worker process: metrics may be made only once."""
    return MonitorClient(monitor)
