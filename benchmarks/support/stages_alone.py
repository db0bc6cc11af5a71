"""The job's stages and the same work written plainly, both in this process and without Ray: CPU time of each part."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.support.plain_ways import SCHEMA, Model, fetch
from benchmarks.support.stub_replica import IMAGES_PER_FILE, StubSettings
from pipeline.annotate.stages.encode import Encode
from pipeline.annotate.stages.fetch_decode import FetchDecode
from pipeline.annotate.stages.guard import InProcessGuard
from pipeline.annotate.stages.ordering import BatchOrder
from pipeline.annotate.stages.segment import Segment
from pipeline.annotate.stages.stage import StageCounts
from pipeline.annotate.stages.write import Write
from pipeline.annotations.data_file import Identity
from pipeline.annotations.ledger import OutputStore
from pipeline.annotations.pictures import PictureSource
from pipeline.config.images import ImagesConfig
from pipeline.model.host_memory import keep_freed_memory
from pipeline.storage.uris import Uri

PARTS = ("fetch and decode", "segment and encode", "write")
_DEADLINE_S = 60.0

T = TypeVar("T")


class Clock:
    """CPU seconds of this process by part."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)

    def of(self, part: str, work: Callable[..., T], *args: object) -> T:
        """What the work returns; its time is added to the part."""
        started = time.process_time()
        result = work(*args)
        self.seconds[part] += time.process_time() - started
        return result


def stages_ms(
    folder: Path, files: Sequence[Path], num_images: int, stub: StubSettings, batch: int, block: int, rounds: int
) -> dict[str, dict[str, float]]:
    """CPU milliseconds an image of ``stages`` and of ``plain`` by part, each of its best round; they take turns.

    Args:
        folder: with the stub's checkpoint; takes what is written.
        num_images: of a round; a multiple of a file's.
    """
    keep_freed_memory()  # as the job does; of this process, so the plain way has it too
    model = Model(folder / "model.safetensors", stub, batch)
    uris = [str(files[i % len(files)]) for i in range(num_images)]
    guard = InProcessGuard()
    pictures, order = PictureSource.of_config(ImagesConfig()), BatchOrder(800, 1333, batch, block)
    fetch_decode = FetchDecode(pictures, order, guard, _discard, _DEADLINE_S)
    thresholds = [0.0] * len(model.categories)
    segment = Segment(model.predictor, batch, thresholds, guard, _discard, _DEADLINE_S)  # type: ignore[arg-type]
    encode = Encode(SCHEMA, model.categories, guard, _discard)
    identity = Identity("made up", "0" * 64, "0" * 64, "{}", "0", "bench")
    write = Write(OutputStore(Uri(str(folder / "out"))), identity, 3, lambda: None, _discard)

    def stages(clock: Clock) -> None:
        for start in range(0, num_images, IMAGES_PER_FILE):
            ids = pa.array(range(start, start + IMAGES_PER_FILE), pa.int64())
            columns = {"image_id": ids, "image_uri": uris[start : start + IMAGES_PER_FILE]}
            tables = fetch_decode(pa.table({**columns, "image_bytes": pa.nulls(len(ids), pa.binary())}))
            encoded = []
            while (table := clock.of(PARTS[0], next, tables, None)) is not None:
                encoded.append(clock.of(PARTS[1], encode, clock.of(PARTS[1], segment, table)))
            clock.of(PARTS[2], write, pa.concat_tables(encoded))

    write_plainly = functools.partial(pq.write_table, where=folder / "plain.parquet", compression="zstd")

    def plain(clock: Clock) -> None:
        for start in range(0, num_images, IMAGES_PER_FILE):
            made = []
            for first in range(start, start + IMAGES_PER_FILE, block):
                ids = np.arange(first, first + block)
                asked = {"image_id": ids, "image_uri": np.array(uris[first : first + block], object)}
                got = clock.of(PARTS[0], fetch, asked)
                made.append(clock.of(PARTS[1], model.table, got))
            clock.of(PARTS[2], write_plainly, pa.concat_tables(made))

    best: dict[str, dict[str, float]] = {}
    for number in range(rounds + 1):
        for way in (stages, plain):
            clock = Clock()
            way(clock)
            name = way.__name__
            if number and (name not in best or sum(clock.seconds.values()) < sum(best[name].values())):
                best[name] = clock.seconds
    return {name: {part: s * 1e3 / num_images for part, s in spent.items()} for name, spent in best.items()}


def _discard(counts: StageCounts) -> None:
    """Nobody counts."""
