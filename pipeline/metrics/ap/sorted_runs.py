"""Records on scratch storage: sorted runs, one for each category and file, and their merge in bounded memory.

A file holds the runs of all categories one after the other, cut into chunks, each compressed by itself. What lies
where is in the `SortedRun`s, which travel with the file's name: such files do not outlive the evaluation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from itertools import islice
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from pipeline.metrics.ap.records import Records, sort_order
from pipeline.storage.objects.base import ObjectFolder
from pipeline.tables.arrays import Int64s

# A merge holds two chunks of each group: thousands of groups must fit into memory.
CHUNK_RECORDS = 1024
CHUNKS_AT_ONCE = 32  # that a merge reads of all runs together, where there are fewer runs than that
_CODEC = "zstd"
_READ_THREADS = 16


class RecordChunk(NamedTuple):
    """Where some successive records of a run lie in the file."""

    start: int
    stop: int
    num_records: int


class SortedRun(NamedTuple):
    """The sorted records of one category in one file."""

    name: str
    chunks: tuple[RecordChunk, ...]


def write_runs(objects: ObjectFolder, name: str, categories: Int64s, records: Records) -> dict[int, SortedRun]:
    """Sort records by category and score, and write them as one file.

    Args:
        objects: the scratch folder that the file goes to.
        name: of the file; written again if the task is.
        categories: [n] of the records.
        records: [n] in any order, with the fields ``score``, ``image`` and ``rank``.

    Returns:
        The run of each category that has records; no file is written if none has.
    """
    order = sort_order(records)
    order = order[np.argsort(categories[order], kind="stable")]
    categories, records = categories[order], records[order]
    present, starts = np.unique(categories, return_index=True)
    stops = np.append(starts, len(records))[1:]
    packed: list[bytes] = []
    position = 0
    runs = {}
    for category, start, stop in zip(present.tolist(), starts.tolist(), stops.tolist(), strict=True):
        chunks = []
        for first in range(start, stop, CHUNK_RECORDS):
            chunk = records[first : min(first + CHUNK_RECORDS, stop)]
            packed.append(pa.compress(chunk.tobytes(), codec=_CODEC, asbytes=True))
            chunks.append(RecordChunk(position, position + len(packed[-1]), len(chunk)))
            position += len(packed[-1])
        runs[category] = SortedRun(name, tuple(chunks))
    if packed:
        objects.put(name, b"".join(packed))
    return runs


def merge_runs(objects: ObjectFolder, runs: Sequence[SortedRun], dtype: np.dtype[np.void]) -> Iterator[Records]:
    """The records of several runs as one sorted sequence, a chunk at a time.

    Holds two reads of each run at a time, however long the runs are: of a chunk, or of several that lie side by side
    where there are few runs. No two records may be equal in score, image and rank.
    """
    chunks_at_once = max(1, CHUNKS_AT_ONCE // max(1, len(runs)))
    cursors = [_Cursor(objects, run, dtype, _readers(), chunks_at_once) for run in runs]
    while cursors := [cursor for cursor in cursors if cursor.fill()]:
        # What comes after the last loaded record of a run that goes on may be preceded by what is not loaded yet.
        lasts = [cursor.loaded[-1] for cursor in cursors if cursor.goes_on]
        limit = lasts[sort_order(np.stack(lasts))[0]] if lasts else None
        chunk = np.concatenate([cursor.take(limit) for cursor in cursors])
        yield chunk[sort_order(chunk)] if len(cursors) > 1 else chunk


@cache
def _readers() -> ThreadPoolExecutor:
    """One for all merges of a process: there is one for each category, and most read little."""
    return ThreadPoolExecutor(_READ_THREADS)


class _Cursor:
    """What is loaded of a run and not yet taken; the next chunks are already being read."""

    def __init__(
        self,
        objects: ObjectFolder,
        run: SortedRun,
        dtype: np.dtype[np.void],
        pool: ThreadPoolExecutor,
        chunks_at_once: int,
    ) -> None:
        self.loaded: Records = np.empty(0, dtype)
        self._objects, self._name, self._dtype, self._pool = objects, run.name, dtype, pool
        self._chunks, self._chunks_at_once = iter(run.chunks), chunks_at_once
        self._next: Future[Records] | None = None
        self._read_ahead()

    def fill(self) -> bool:
        """Load the next chunks if all is taken; whether there is anything."""
        if not len(self.loaded) and self._next is not None:
            self.loaded = self._next.result()
            self._read_ahead()
        return len(self.loaded) > 0

    @property
    def goes_on(self) -> bool:
        """Whether there is more than what is loaded."""
        return self._next is not None

    def take(self, limit: np.void | None) -> Records:
        """The loaded records up to and including ``limit``; without one, all."""
        if limit is None:
            taken, self.loaded = self.loaded, self.loaded[:0]
            return taken
        score, image, rank = self.loaded["score"], self.loaded["image"], self.loaded["rank"]
        same_image = (image == limit["image"]) & (rank <= limit["rank"])
        before = (score > limit["score"]) | ((score == limit["score"]) & ((image < limit["image"]) | same_image))
        count = int(before.sum())
        taken, self.loaded = self.loaded[:count], self.loaded[count:]
        return taken

    def _read_ahead(self) -> None:
        chunks = list(islice(self._chunks, self._chunks_at_once))
        self._next = self._pool.submit(self._read, chunks) if chunks else None

    def _read(self, chunks: Sequence[RecordChunk]) -> Records:
        first = chunks[0].start
        packed = memoryview(self._objects.read_range(self._name, first, chunks[-1].stop))
        contents = [
            pa.decompress(packed[start - first : stop - first], num_records * self._dtype.itemsize, codec=_CODEC)
            for start, stop, num_records in chunks
        ]
        return np.concatenate([np.frombuffer(content, self._dtype) for content in contents])
