"""Ids dealt into files by a hash, so that two sides can be joined a partition at a time in bounded memory."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.tables.ids import concat_ids, hash_ids, wide_type

_MIN_PARTITIONS, _MAX_PARTITIONS = 16, 256  # as many open files
_FLUSH_ROWS = 1 << 18  # whose texts stay in a core's cache while they are put in order

Int64Array = NDArray[np.int64]


class Part(NamedTuple):
    """Some ids of a side.

    Attributes:
        ids: without nulls.
        marks: what is known of each beside its id, an array of structs; ``None`` where that does not matter.
    """

    ids: pa.Array | pa.ChunkedArray
    marks: pa.Array | None = None

    @classmethod
    def joined(cls, parts: Sequence[Part], kind: pa.DataType, marks: pa.DataType | None) -> Part:
        """All of them as one, of which there may be none.

        Args:
            kind: of the ids, see `wide_type`.
            marks: their type.
        """
        ids = concat_ids([part.ids for part in parts], kind)
        if marks is None:
            return cls(ids)
        return cls(ids, pa.concat_arrays([pa.array([], marks), *(part.marks for part in parts)]))


class IdPartitions:
    """Ids on disk, dealt by their hash: a file for each side and partition, in the Arrow IPC stream format.

    They are not compressed: that would take more time than all else, and ids that are random it would not make shorter.

    Args:
        folder: for the files; whoever gives it removes it.
        id_type: of the ids, ``int64`` or ``string``.
        num_rows: rows of the manifest: decides how many partitions there are.
        memory_rows: ids that fit into memory.
        marks: type of the marks beside them; ``None`` for none.
    """

    def __init__(
        self, folder: str, id_type: pa.DataType, num_rows: int, memory_rows: int, marks: pa.DataType | None = None
    ) -> None:
        # Hashes deal unevenly, and a join needs about as much again as the ids themselves.
        wanted = max(1, 4 * num_rows // max(1, memory_rows))
        self.num_partitions = min(_MAX_PARTITIONS, max(_MIN_PARTITIONS, 1 << (wanted - 1).bit_length()))
        self._folder = folder
        self._flush_rows = max(1, min(_FLUSH_ROWS, memory_rows // 4))
        self._kind, self._marks = wide_type(id_type), marks
        fields = [("id", self._kind), ("row", pa.int64()), *([("marks", marks)] if marks else [])]
        self._schema = pa.schema(fields)

    def deal(self, side: str, parts: Iterable[Part]) -> int:
        """Write all ids of a side, with their running numbers; how many there are."""
        writers = []
        try:
            for partition in range(self.num_partitions):
                path = self._path(side, partition)
                writers.append(pa.ipc.new_stream(path, self._schema))
            start = 0
            for batch in self._in_batches(parts):
                self._deal_batch(batch, start, writers)
                start += len(batch.ids)
        finally:
            for writer in writers:
                writer.close()
        return start

    def _deal_batch(self, batch: Part, start: int, writers: list[pa.RecordBatchWriter]) -> None:
        ids, marks = batch
        partitions = (hash_ids(ids) & np.uint64(self.num_partitions - 1)).astype(np.uint8)
        order = np.argsort(partitions, kind="stable")
        ends = np.cumsum(np.bincount(partitions, minlength=self.num_partitions))
        taken = [ids.take(pa.array(order)), pa.array(order + start)]
        dealt = pa.record_batch(taken if marks is None else [*taken, marks.take(pa.array(order))], schema=self._schema)
        first = 0
        for writer, end in zip(writers, ends.tolist(), strict=True):
            if end > first:
                writer.write_batch(dealt.slice(first, end - first))
            first = end

    def read(self, side: str, partition: int) -> tuple[Part, Int64Array]:
        """A partition's ids and their running numbers, ascending."""
        with pa.memory_map(self._path(side, partition)) as source, pa.ipc.open_stream(source) as reader:
            table = reader.read_all()
        marks = table["marks"].chunks if self._marks else [None] * table["id"].num_chunks
        parts = [Part(*part) for part in zip(table["id"].chunks, marks, strict=True)]
        return Part.joined(parts, self._kind, self._marks), table["row"].to_numpy()

    def _path(self, side: str, partition: int) -> str:
        return os.path.join(self._folder, f"{side}-{partition}.arrow")

    def _in_batches(self, parts: Iterable[Part]) -> Iterator[Part]:
        """The same ids in parts of about ``_flush_rows``: small ones together, long ones cut."""
        waiting: list[Part] = []
        num_waiting, num_rows = 0, self._flush_rows
        for ids, marks in parts:
            for start in range(0, len(ids), num_rows):
                cut = ids.slice(start, num_rows)
                waiting.append(Part(cut, None if marks is None else marks.slice(start, num_rows)))
                num_waiting += len(cut)
                if num_waiting >= num_rows:
                    yield Part.joined(waiting, self._kind, self._marks)
                    waiting, num_waiting = [], 0
        if waiting:
            yield Part.joined(waiting, self._kind, self._marks)
