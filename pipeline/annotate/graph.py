"""The graph of the annotate job on Ray Data; the only module that knows how the stages run.

    read units -> repartition -> fetch + decode -> segment (actors) -> encode -> repartition -> write

Decoded pictures cross as uint8 in blocks of a few model batches; results are gathered into blocks of
``images_per_file`` rows, and each of those becomes one file, whole or not at all.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
from ray.data import DataContext, Dataset

from pipeline.annotate.config import AnnotateConfig
from pipeline.annotate.manifest.open import Manifest
from pipeline.annotate.manifest.rules import ReadUnit
from pipeline.annotate.monitor import MonitorClient
from pipeline.annotate.pending.antijoin import Pending
from pipeline.annotate.pool import Pool
from pipeline.annotate.stages.encode import Encode
from pipeline.annotate.stages.fetch_decode import FetchDecode
from pipeline.annotate.stages.stage import Stage
from pipeline.annotate.stages.write import Write
from pipeline.annotations.data_file import Identity
from pipeline.annotations.ledger import OutputStore
from pipeline.annotations.pictures import PictureSource
from pipeline.cluster.quiet import quiet
from pipeline.model.categories import Category
from pipeline.model.host_memory import keep_freed_memory
from pipeline.model.settings import TestSettings
from pipeline.storage.uris import Uri

# A unit of reading is one task: enough rows to be worth its launch, few enough to spread over the cluster.
ROWS_PER_READ_TASK = 4096
# Reading, encoding and writing are light, and several of them fit beside a fetch task on one core.
LIGHT_CPUS = 0.25
# Ray's own default: a run in which nothing comes out for so long has failed.
_NO_PROGRESS_S = 1800


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
    """A lazy dataset of one row per written file: ``name``, ``num_rows``, ``size_bytes``."""
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
    write = Write(parts.store, parts.identity, config.output.compression_level, parts.fence, client.report)
    tables: dict[str, Any] = {"batch_format": "pyarrow", "zero_copy_batch": True}
    return (
        ray.data.from_arrow(list(_unit_tables(pending)))
        .map_batches(read, batch_size=None, num_cpus=LIGHT_CPUS, **tables)
        .repartition(target_num_rows_per_block=block)
        .map_batches(fetch, batch_size=block, num_cpus=config.resources.fetch_cpus_per_task, **tables)
        .map_batches(
            SegmentActor,
            fn_constructor_args=(parts.checkpoint, config.model, settings, pool, client),
            compute=pool.strategy(),
            batch_size=block,
            num_gpus=pool.gpus or None,
            num_cpus=pool.cpus,
            **tables,
        )
        .map_batches(encode, batch_size=None, num_cpus=LIGHT_CPUS, **tables)
        # strict: without it, blocks smaller than a file are passed on as they are
        .repartition(target_num_rows_per_block=config.output.images_per_file, strict=True)
        .map_batches(write, batch_size=None, num_cpus=LIGHT_CPUS, **tables)
    )


def _set_context(config: AnnotateConfig) -> None:
    context = quiet(DataContext.get_current())
    # Work has time limits of its own, and an image may use up two of them before any row comes out.
    context.execution_no_progress_timeout_s = _NO_PROGRESS_S + round(2 * config.model.call_timeout_s)
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
