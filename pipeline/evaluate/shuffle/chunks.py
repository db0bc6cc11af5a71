"""Tables dealt into parts on scratch storage: one file holds a chunk of each part, which is read by its byte range.

This is the shuffle of the evaluation. Whoever deals holds one buffer, however many parts there are, and writes it
as one file when it is full; whoever reads a part asks each file for its chunk. Rows of a part keep their order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.storage.map_ahead import map_ahead
from pipeline.storage.objects.open import open_objects
from pipeline.storage.uris import Uri
from pipeline.tables.arrays import Int64s
from pipeline.tables.arrow_types import in_one_piece
from pipeline.tables.ids import hash_ids, wide

BUFFER_BYTES = 16 << 20  # of rows, before a file is written
_READS_AT_ONCE = 16
_OPTIONS = pa.ipc.IpcWriteOptions(compression="lz4")  # one process deals all of the ground truth


@dataclass(frozen=True)
class ChunkFile:
    """A file of chunks, one for each part.

    Attributes:
        name: below the store's URI.
        offsets: [P + 1] bytes: chunk ``p`` is ``offsets[p]`` to ``offsets[p + 1]``, empty where it has no rows.
    """

    name: str
    offsets: Int64s

    def part(self, number: int) -> Chunk:
        """The chunk of a part."""
        start, stop = self.offsets[number : number + 2].tolist()
        return Chunk(self.name, start, stop)


@dataclass(frozen=True)
class Chunk:
    """Where a chunk is: bytes ``start`` to before ``stop`` of a file."""

    name: str
    start: int
    stop: int


@dataclass(frozen=True)
class ChunkStore:
    """A folder of such files that all nodes reach. Picklable; whoever makes it removes the folder.

    Attributes:
        uri: of the folder; need not exist.
    """

    uri: Uri

    def write(self, name: str, table: pa.Table, parts: NDArray[np.integer], num_parts: int) -> ChunkFile:
        """Write a file; the same name overwrites.

        Args:
            name: of the file, below the store's folder.
            table: N rows in any order of their parts.
            parts: [N] which part each row belongs to, 0 to ``num_parts - 1``.
            num_parts: P, how many there are.
        """
        ends = np.cumsum(np.bincount(parts, minlength=num_parts)).tolist()
        dealt = table.combine_chunks()
        if (parts[1:] < parts[:-1]).any():  # to take them copies them
            dealt = dealt.take(pa.array(np.argsort(parts, kind="stable"))).combine_chunks()
        sink = pa.BufferOutputStream()
        offsets, first = [0], 0
        for end in ends:
            if end > first:
                with pa.ipc.new_stream(sink, dealt.schema, options=_OPTIONS) as writer:
                    writer.write_table(dealt.slice(first, end - first))
            offsets.append(sink.tell())
            first = end
        open_objects(self.uri).put(name, sink.getvalue())
        return ChunkFile(name, np.array(offsets, np.int64))

    def read(self, chunks: Iterable[Chunk], schema: pa.Schema) -> pa.Table:
        """The rows of chunks, one after the other.

        Args:
            chunks: those of one part, in the order in which the files were written.
            schema: of the rows, where there are none.
        """
        tables = list(self.read_each(chunks))
        return pa.concat_tables(tables).combine_chunks() if tables else schema.empty_table()

    def read_each(self, chunks: Iterable[Chunk], reads_at_once: int = _READS_AT_ONCE) -> Iterator[pa.Table]:
        """A table for each chunk that has rows, some read ahead."""
        objects = open_objects(self.uri)
        waiting = [s for s in chunks if s.stop > s.start]
        contents = map_ahead(
            lambda s: objects.read_range(s.name, s.start, s.stop), waiting, reads_at_once, 2 * reads_at_once
        )
        for content in contents:
            with pa.ipc.open_stream(content) as reader:
                yield reader.read_all()


class Dealer:
    """Deals rows by a hash of an id, so that two tables can be joined a part at a time.

    Args:
        store: where the files go.
        name: what their names begin with.
        num_parts: P, how many there are.
    """

    def __init__(self, store: ChunkStore, name: str, num_parts: int) -> None:
        self._store = store
        self._name = name
        self._num_parts = num_parts
        self._tables: list[pa.Table] = []
        self._parts: list[Int64s] = []
        self._files: list[ChunkFile] = []
        self._size_bytes = 0

    def deal(self, table: pa.Table, key: str) -> None:
        """Append rows, which belong together with those of an equal ``key``: integers or strings, not null."""
        self._tables.append(table)
        self._parts.append(parts_of(table[key], self._num_parts))
        self._size_bytes += table.nbytes
        if self._size_bytes >= BUFFER_BYTES:
            self._flush()

    def close(self) -> tuple[ChunkFile, ...]:
        """All files, after the last rows."""
        self._flush()
        return tuple(self._files)

    def _flush(self) -> None:
        if self._tables:
            name = f"{self._name}-{len(self._files):05d}.arrows"
            table, parts = pa.concat_tables(self._tables), np.concatenate(self._parts)
            self._tables, self._parts, self._size_bytes = [], [], 0
            self._files.append(self._store.write(name, table, parts, self._num_parts))


def parts_of(ids: pa.ChunkedArray, num_parts: int) -> Int64s:
    """[N] the part of each id."""
    return (hash_ids(wide(in_one_piece(ids))) % np.uint64(num_parts)).astype(np.int64)


def chunks_of(files: Sequence[ChunkFile], part: int) -> list[Chunk]:
    """The chunks of one part in all files."""
    return [file.part(part) for file in files]
