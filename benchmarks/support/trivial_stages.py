"""Stages that do nothing but what costs the driver: they tell the monitor, and pass rows on. In workers.

And the graph as it was before the one of `pipeline.annotate.graph`: read, repartition, fetch, segment, encode, each of
them an operator, blocks of rows that Ray Data joins and cuts; a task for a block in most of them, and calls of the
monitor for each block.
"""

from __future__ import annotations

import functools
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.data import DataContext, Dataset, TaskPoolStrategy

from pipeline.annotate.config import AnnotateConfig
from pipeline.annotate.graph import RunParts
from pipeline.annotate.manifest.open import Manifest
from pipeline.annotate.manifest.rules import ReadUnit
from pipeline.annotate.pending.antijoin import Pending
from pipeline.annotate.pool import LIGHT_CPUS, Pool
from pipeline.annotate.progress import Snapshot
from pipeline.annotate.stages.guard import Guard, InProcessGuard
from pipeline.annotate.stages.ordering import BatchOrder
from pipeline.annotate.stages.stage import Report, StageCounts
from pipeline.annotations.ledger import DataFile
from pipeline.cluster.quiet import quiet
from pipeline.model.settings import TestSettings
from pipeline.storage.uris import Uri
from pipeline.tables.packed import cut, packed, unpacked

_ROWS_PER_READ_TASK = 4096


def tell(guard: Guard, stage: str, rows: pa.Table) -> None:
    """What `pipeline.annotate.stages.guard.run_guarded` tells of a batch in which nothing dies."""
    ids = rows["image_id"].to_pylist()
    guard.begin(stage, ids)
    guard.end(stage, ids)


class Fetch:
    """Takes the place of `FetchDecode`."""

    def __init__(self, pictures: Any, order: BatchOrder, guard: Guard, report: Report, *_: Any) -> None:
        self._order, self._guard, self._report = order, guard, report

    def __call__(self, rows: pa.Table) -> Iterator[pa.Table]:
        """Blocks with 64 bytes of pixels for each image."""
        ids = rows["image_id"].to_pylist()
        self._guard.begin("decode", ids)
        self._guard.settle(str(ids[0]), bytes(2 * len(ids)))
        for block in cut([rows], self._order.images_per_block):
            self._guard.end("decode", block["image_id"].to_pylist())
            yield self.decode(block)

    def decode(self, rows: pa.Table) -> pa.Table:
        """A block with 64 bytes of pixels for each image."""
        self._report(StageCounts(fetch_s=0.01, decode_s=0.01, decoded=len(rows)))
        pixels = pa.array([b"x" * 64] * len(rows), pa.large_binary())
        return rows.drop_columns(["image_bytes"]).append_column("pixels", pixels)


class FetchBefore(Fetch):
    """A block for each task."""

    def decode(self, rows: pa.Table) -> pa.Table:
        """As it was."""
        tell(self._guard, "decode", rows)
        return super().decode(rows)


class Segment:
    """Takes the place of `SegmentActor`."""

    def __init__(self, checkpoint: Any, config: Any, settings: TestSettings, pool: Pool, client: Any) -> None:
        self._client = client

    def __call__(self, block: pa.Table) -> pa.Table:
        """With 64 bytes of masks instead, packed as they come."""
        return packed(self.segment(unpacked(block)))

    def segment(self, rows: pa.Table) -> pa.Table:
        """The same for rows as they are."""
        tell(self._client, "segment", rows)
        self._client.report(StageCounts(segment_s=0.01, segmented=len(rows)))
        masks = pa.array([b"m" * 64] * len(rows), pa.large_binary())
        return rows.drop_columns(["pixels"]).append_column("masks", masks)


class Encode:
    """Takes the place of the stage of that name."""

    def __init__(self, schema: Any, categories: Any, guard: Guard, report: Report) -> None:
        self._guard, self._report = guard, report

    def __call__(self, rows: pa.Table) -> pa.Table:
        """The same rows."""
        tell(self._guard, "encode", rows)
        self._report(StageCounts(encode_s=0.01, encoded=len(rows), detections=1))
        return rows


class Write:
    """Takes the place of the stage of that name, and writes nothing."""

    def __init__(self, store: Any, identity: Any, compression_level: int, fence: Any, report: Report) -> None:
        self._report = report

    def __call__(self, rows: pa.Table) -> DataFile:
        """A file that is not there."""
        self._report(StageCounts(write_s=0.01, written=len(rows), files=1))
        return DataFile("none", len(rows), 0)


class MonitorBefore(InProcessGuard):
    """The actor that each block of each stage called."""

    def __init__(self) -> None:
        super().__init__()
        self._counts = StageCounts()

    def add(self, counts: StageCounts) -> None:
        """Add to the sum."""
        self._counts += counts

    def snapshot(self) -> Snapshot:
        """The sum."""
        return Snapshot(self._counts)


@dataclass(frozen=True)
class ClientBefore:
    """Its other end: a call for each beginning, each end and each report."""

    monitor: Any

    def begin(self, stage: str, ids: Sequence[Hashable]) -> list[int]:
        """See `Guard`."""
        return ray.get(self.monitor.begin.remote(stage, ids))

    def end(self, stage: str, ids: Sequence[Hashable]) -> None:
        """See `Guard`."""
        self.monitor.end.remote(stage, ids)

    def report(self, counts: StageCounts) -> None:
        """Add to the run's counts."""
        self.monitor.add.remote(counts)


def build_before(parts: RunParts, pending: Pending) -> Dataset:
    """A lazy dataset of encoded blocks, by the graph as it was."""
    quiet(DataContext.get_current()).target_max_block_size = 128 << 20
    config, pool, client = parts.config, parts.pool, ClientBefore(parts.monitor)
    block = config.images_per_block
    read = functools.partial(_read, manifest=parts.manifest, rows_per_block=block)
    fetch = FetchBefore(None, None, client, client.report).decode  # type: ignore[arg-type]
    encode: Any = Encode(None, None, client, client.report)  # type: ignore[arg-type]
    tables: dict[str, Any] = {"batch_format": "pyarrow", "zero_copy_batch": True}
    return (
        ray.data.from_arrow(list(_unit_tables(pending)))
        .map_batches(read, batch_size=None, num_cpus=LIGHT_CPUS, **tables)
        .repartition(target_num_rows_per_block=block)
        .map_batches(functools.partial(_call, fetch), batch_size=block, num_cpus=pool.fetch_cpus, **tables)
        .map_batches(
            SegmentBefore,
            fn_constructor_args=(None, config.model, parts.settings, pool, client),
            compute=pool.strategy(),
            batch_size=block,
            num_gpus=pool.gpus,
            num_cpus=pool.cpus,
            **tables,
        )
        .map_batches(
            functools.partial(_call, encode),
            batch_size=None,
            compute=TaskPoolStrategy(size=2 * pool.max_actors),
            num_cpus=LIGHT_CPUS,
            **tables,
        )
    )


class SegmentBefore(Segment):
    """Of blocks that are not packed."""

    def __call__(self, block: pa.Table) -> pa.Table:
        """As `segment`."""
        return self.segment(block)


def write_before(stage: Write, *blocks: pa.Table) -> DataFile:
    """The task that writes a file of encoded blocks."""
    return stage(pa.concat_tables(blocks))


def _call(stage: Any, rows: pa.Table) -> pa.Table:
    return stage(rows)


def _unit_tables(pending: Pending) -> Iterator[pa.Table]:
    for unit, rows in pending.iter_units():
        for start in range(0, len(rows), _ROWS_PER_READ_TASK):
            part = pa.array([rows[start : start + _ROWS_PER_READ_TASK]], pa.list_(pa.int64()))
            place = {"file": [unit.file.secret_text], "row_group": [unit.row_group], "num_rows": [unit.num_rows]}
            yield pa.table({**place, "rows": part})


def _read(units: pa.Table, manifest: Manifest, rows_per_block: int) -> Iterator[pa.Table]:
    for unit, rows in zip(units.drop_columns(["rows"]).to_pylist(), units["rows"], strict=True):
        wanted: np.ndarray = rows.values.to_numpy()
        yield from manifest.read_rows(ReadUnit(Uri(unit.pop("file")), **unit), wanted, rows_per_block)


def config_of(manifest: str, output: str, images_per_block: int) -> AnnotateConfig:
    """Of a run in which no model is loaded and nothing is written."""
    return AnnotateConfig.model_validate(
        {
            "manifest": {"uri": manifest},
            "model": {"checkpoint": "none.safetensors", "batch_size": images_per_block // 4},
            "resources": {"images_per_block": images_per_block},
            "output": {"uri": output},
        }
    )
