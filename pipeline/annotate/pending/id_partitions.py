"""Ids dealt into files by a hash, so that two sides can be joined a partition at a time in bounded memory."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.tables.ids import concat_ids, hash_ids, wide_type

_MIN_PARTITIONS, _MAX_PARTITIONS = 16, 256  # as many open files
_FLUSH_ROWS = 1 << 18  # whose texts stay in a core's cache while they are put in order

Int64Array = NDArray[np.int64]


class IdPartitions:
    """Ids on disk, dealt by their hash: a file for each side and partition, in the Arrow IPC stream format.

    They are not compressed: that would take more time than all else, and ids that are random it would not make shorter.

    Args:
        folder: for the files; whoever gives it removes it.
        id_type: of the ids, ``int64`` or ``string``.
        num_rows: rows of the manifest: decides how many partitions there are.
        memory_rows: ids that fit into memory.
    """

    def __init__(self, folder: str, id_type: pa.DataType, num_rows: int, memory_rows: int) -> None:
        # Hashes deal unevenly, and a join needs about as much again as the ids themselves.
        wanted = max(1, 4 * num_rows // max(1, memory_rows))
        self.num_partitions = min(_MAX_PARTITIONS, max(_MIN_PARTITIONS, 1 << (wanted - 1).bit_length()))
        self._folder = folder
        self._flush_rows = max(1, min(_FLUSH_ROWS, memory_rows // 4))
        self._schema = pa.schema([("id", wide_type(id_type)), ("row", pa.int64())])

    def deal(self, side: str, arrays: Iterable[pa.Array | pa.ChunkedArray]) -> None:
        """Write all ids of a side, with their running numbers."""
        writers = []
        try:
            for partition in range(self.num_partitions):
                path = self._path(side, partition)
                writers.append(pa.ipc.new_stream(path, self._schema))
            start = 0
            for ids in _in_batches(arrays, self._flush_rows, self._schema.field("id").type):
                self._deal_batch(ids, start, writers)
                start += len(ids)
        finally:
            for writer in writers:
                writer.close()

    def _deal_batch(self, ids: pa.Array, start: int, writers: list[pa.RecordBatchWriter]) -> None:
        partitions = (hash_ids(ids) & np.uint64(self.num_partitions - 1)).astype(np.uint8)
        order = np.argsort(partitions, kind="stable")
        ends = np.cumsum(np.bincount(partitions, minlength=self.num_partitions))
        dealt = pa.record_batch([ids.take(pa.array(order)), pa.array(order + start)], schema=self._schema)
        first = 0
        for writer, end in zip(writers, ends.tolist(), strict=True):
            if end > first:
                writer.write_batch(dealt.slice(first, end - first))
            first = end

    def read(self, side: str, partition: int) -> tuple[pa.Array, Int64Array]:
        """A partition's ids and their running numbers, ascending."""
        with pa.memory_map(self._path(side, partition)) as source, pa.ipc.open_stream(source) as reader:
            table = reader.read_all()
        ids = concat_ids(table["id"].chunks, self._schema.field("id").type)
        return ids, table["row"].to_numpy()

    def _path(self, side: str, partition: int) -> str:
        return os.path.join(self._folder, f"{side}-{partition}.arrow")


def _in_batches(arrays: Iterable[pa.Array | pa.ChunkedArray], num_rows: int, kind: pa.DataType) -> Iterator[pa.Array]:
    """The same ids in arrays of about ``num_rows``: small ones together, long ones cut."""
    waiting: list[pa.Array | pa.ChunkedArray] = []
    num_waiting = 0
    for array in arrays:
        for start in range(0, len(array), num_rows):
            waiting.append(array.slice(start, num_rows))
            num_waiting += len(waiting[-1])
            if num_waiting >= num_rows:
                yield concat_ids(waiting, kind)
                waiting, num_waiting = [], 0
    if waiting:
        yield concat_ids(waiting, kind)
