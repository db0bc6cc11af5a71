"""The rank of every string among all of them, however many: an external merge sort.

pycocotools goes through the images in the order of their ids, which decides between equal scores. Integers are
their own order; strings need a rank, and Arrow's order of UTF-8 bytes is Python's order of code points.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.evaluate.shuffle.chunks import Chunk, ChunkFile, ChunkStore, Dealer

SORTED_BYTES = 32 << 20  # of ids, to sort in memory
CHUNK_IDS = 8192
_DEALT_IDS = 1 << 16
ORDER_SCHEMA = pa.schema([("image_id", pa.large_string()), ("order", pa.int64())])


class IdOrder:
    """Takes strings in any order, then deals them with their ranks.

    Args:
        store: where sorted runs and the dealt ranks go.
    """

    def __init__(self, store: ChunkStore) -> None:
        self._store = store
        self._waiting: list[pa.ChunkedArray] = []
        self._size_bytes = 0
        self._runs: list[ChunkFile] = []

    def add(self, ids: pa.ChunkedArray) -> None:
        """Append ids, of type ``large_string``."""
        self._waiting.append(ids)
        self._size_bytes += ids.nbytes
        if self._size_bytes >= SORTED_BYTES:
            self._write_run()

    def deal(self, num_parts: int) -> tuple[ChunkFile, ...]:
        """Deal all ids with their ranks, 0 to N - 1, by a hash of the id; see `ORDER_SCHEMA`."""
        self._write_run()
        dealer = Dealer(self._store, "order", num_parts)
        ids = heapq.merge(*map(self._read_run, self._runs))
        first = 0
        while chunk := list(islice(ids, _DEALT_IDS)):
            ranks = np.arange(first, first + len(chunk))
            dealer.deal(pa.table([chunk, ranks], schema=ORDER_SCHEMA), "image_id")
            first += len(chunk)
        return dealer.close()

    def _write_run(self) -> None:
        if not self._waiting:
            return
        table = pa.table({"image_id": pa.chunked_array(_chunks(self._waiting), pa.large_string())})
        self._waiting, self._size_bytes = [], 0
        table = table.take(pc.sort_indices(table["image_id"]))
        parts = np.arange(table.num_rows) // CHUNK_IDS
        self._runs.append(self._store.write(f"ids-{len(self._runs):05d}.arrows", table, parts, int(parts[-1]) + 1))

    def _read_run(self, run: ChunkFile) -> Iterator[str]:
        chunks: list[Chunk] = [run.part(number) for number in range(len(run.offsets) - 1)]
        for table in self._store.read_each(chunks, reads_at_once=1):
            yield from table["image_id"].to_pylist()


def _chunks(arrays: Iterable[pa.ChunkedArray]) -> list[pa.Array]:
    return [chunk for array in arrays for chunk in array.chunks]
