"""Which rows of a manifest are still to be done: an exact anti-join of its ids with those of an output.

Up to ``memory_rows`` ids the join is one hash join in memory. Beyond, both sides are dealt into partitions on disk
by a hash of the id, and each pair of partitions is joined on its own. Ids are compared whole: the hash only
decides where a comparison takes place, so its collisions cost time and never a row.

Memory: about ``memory_rows`` ids of either side, plus one byte for each row of the manifest.
"""

from __future__ import annotations

import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.data.manifest import Manifest, ManifestError, ReadUnit, is_text
from pipeline.data.uris import redact

_NUM_EXAMPLES = 5
_READ_AHEAD = 4  # units
_MIN_PARTITIONS, _MAX_PARTITIONS = 16, 256  # as many open files
_FLUSH_ROWS = 1 << 20

Int64Array = NDArray[np.int64]
UInt64Array = NDArray[np.uint64]


class DuplicateIdError(ManifestError):
    """Ids that stand in the manifest more than once."""


@dataclass(frozen=True)
class Sample:
    """How many ids something is true of, and a few of them."""

    count: int
    examples: tuple[int | str, ...]


@dataclass(frozen=True)
class Pending:
    """The books: ``num_rows = num_done + num_pending``; rows seen in ``done`` = ``num_done`` + both samples' counts.

    Attributes:
        packed: the units that have pending rows, each with a bit a row (``np.packbits``): 12.5 MB for 100 million.
        num_rows: rows of the manifest.
        num_pending: rows whose id is not in ``done``.
        num_done: rows whose id is.
        duplicate_done: surplus rows of ``done``, beyond the first of each id.
        unknown_done: ids in ``done`` that the manifest does not have.
    """

    packed: tuple[tuple[ReadUnit, NDArray[np.uint8]], ...]
    num_rows: int
    num_pending: int
    num_done: int
    duplicate_done: Sample
    unknown_done: Sample

    def iter_units(self) -> Iterator[tuple[ReadUnit, Int64Array]]:
        """Units with their pending rows' indices, ascending; one unit unpacked at a time."""
        for unit, bits in self.packed:
            yield unit, np.flatnonzero(np.unpackbits(bits, count=unit.num_rows))

    @property
    def units(self) -> list[tuple[ReadUnit, Int64Array]]:
        """All of :meth:`iter_units` at once: 8 bytes a pending row."""
        return list(self.iter_units())


def find_pending(
    manifest: Manifest, done: Iterable[pa.Array], *, memory_rows: int = 4_000_000, tmp_dir: str | None = None
) -> Pending:
    """Join the manifest's ids with those of the output, and check both for duplicates.

    Args:
        manifest: its ids are read once, a few units ahead.
        done: arrays of ids, of any length; each is asked for when the one before is dealt with.
        memory_rows: ids to hold in memory, of either side.
        tmp_dir: where partitions go, 1 to 2 times the size of all ids; the system's own if ``None``. Removed
            before this returns.

    Raises:
        DuplicateIdError: the manifest holds an id twice.
        ManifestError: a null id, or ids of the output that are not of the manifest's type.
    """
    ids_done = (_as_manifest_ids(ids, manifest.id_type) for ids in done)
    ids_manifest = (_wide(ids) for ids in _read_ahead(manifest.read_ids, manifest.units))
    result = _Result(manifest)
    in_memory, rest = _take(ids_done, memory_rows)
    if manifest.num_rows <= memory_rows and rest is None:
        kind = _wide_type(manifest.id_type)
        rows = np.arange(manifest.num_rows)
        result.join(_concat(list(ids_manifest), kind), rows, _concat(in_memory, kind))
    else:
        with tempfile.TemporaryDirectory(prefix="antijoin-", dir=tmp_dir) as folder:
            sides = _Partitions(folder, manifest, memory_rows)
            sides.deal("done", chain(in_memory, rest or ()))
            in_memory.clear()
            sides.deal("manifest", ids_manifest)
            for partition in range(sides.num_partitions):
                result.join(*sides.read("manifest", partition), sides.read("done", partition)[0])
    return result.close()


class _Result:
    """Joins pairs of partitions and adds up what it finds."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._pending = np.ones(manifest.num_rows, dtype=bool)
        self._num_twice = 0
        self._twice: list[tuple[int, int | str, int]] = []  # first row, id, how often
        self._duplicate_done: list[int | str] = []
        self._unknown_done: list[int | str] = []
        self._num_duplicate_done = self._num_unknown_done = 0

    def join(self, ids: pa.Array, rows: Int64Array, done: pa.Array) -> None:
        """All of an id's rows of either side must be in the same call; ``rows`` are row numbers of the manifest."""
        self._find_twice(ids, rows)
        found = pc.index_in(done, value_set=ids)
        known = found.drop_null().to_numpy()
        self._pending[rows[known]] = False
        self._count_duplicates(ids, np.bincount(known, minlength=len(ids)))
        if found.null_count:
            unknown = done.filter(found.is_null()).dictionary_encode()
            different = unknown.dictionary
            self._num_unknown_done += len(different)
            self._unknown_done += _examples(different, np.arange(len(different)), self._unknown_done)
            self._count_duplicates(different, np.bincount(unknown.indices.to_numpy()))

    def _count_duplicates(self, ids: pa.Array, counts: Int64Array) -> None:
        repeated = np.flatnonzero(counts > 1)
        self._num_duplicate_done += int(counts[repeated].sum()) - len(repeated)
        self._duplicate_done += _examples(ids, repeated, self._duplicate_done)

    def _find_twice(self, ids: pa.Array, rows: Int64Array) -> None:
        encoded = ids.dictionary_encode()
        if len(encoded.dictionary) == len(ids):
            return
        codes = encoded.indices.to_numpy()
        counts = np.bincount(codes)
        twice = np.flatnonzero(counts > 1)
        self._num_twice += len(twice)
        for code in twice[:_NUM_EXAMPLES]:  # codes are in the order of first rows
            first_row = int(rows[np.argmax(codes == code)])
            self._twice.append((first_row, encoded.dictionary[int(code)].as_py(), int(counts[code])))

    def close(self) -> Pending:
        """Check the manifest, and cut what is pending by unit."""
        self._raise_for_duplicates()
        packed = []
        start = 0
        for unit in self._manifest.units:
            mask = self._pending[start : start + unit.num_rows]
            start += unit.num_rows
            if mask.any():
                packed.append((unit, np.packbits(mask)))
        num_pending = int(np.count_nonzero(self._pending))
        return Pending(
            packed=tuple(packed),
            num_rows=start,
            num_pending=num_pending,
            num_done=start - num_pending,
            duplicate_done=Sample(self._num_duplicate_done, tuple(self._duplicate_done)),
            unknown_done=Sample(self._num_unknown_done, tuple(self._unknown_done)),
        )

    def _raise_for_duplicates(self) -> None:
        if not self._num_twice:
            return
        named = []
        for first_row, identifier, count in sorted(self._twice)[:_NUM_EXAMPLES]:
            shown = repr(redact(identifier)) if isinstance(identifier, str) else identifier
            named.append(f"{shown} {count} times (first in {self._name_row(first_row)})")
        more = f", and {self._num_twice - len(named)} more" if self._num_twice > len(named) else ""
        raise DuplicateIdError(
            f"{redact(self._manifest.uri)}: {self._num_twice} image ids occur more than once: {'; '.join(named)}{more}."
            " Every image needs an id of its own: remove the repeated rows or name another id_column"
        )

    def _name_row(self, row: int) -> str:
        for unit in self._manifest.units:
            if row < unit.num_rows:
                return f"{redact(unit.file)}, row group {unit.row_group}, row {row + 1}"
            row -= unit.num_rows
        raise AssertionError("a row behind the manifest's end")


class _Partitions:
    """Ids on disk, dealt by their hash: two files a partition, in the Arrow IPC stream format."""

    def __init__(self, folder: str, manifest: Manifest, memory_rows: int) -> None:
        # Hashes deal unevenly, and a join needs about as much again as the ids themselves.
        wanted = max(1, 4 * manifest.num_rows // max(1, memory_rows))
        self.num_partitions = min(_MAX_PARTITIONS, max(_MIN_PARTITIONS, 1 << (wanted - 1).bit_length()))
        self._folder = folder
        self._flush_rows = max(1, min(_FLUSH_ROWS, memory_rows // 4))
        self._schema = pa.schema([("id", _wide_type(manifest.id_type)), ("row", pa.int64())])

    def deal(self, side: str, arrays: Iterable[pa.Array]) -> None:
        """Write all ids of a side, with their running numbers."""
        options = pa.ipc.IpcWriteOptions(compression="lz4" if pa.Codec.is_available("lz4") else None)
        writers = []
        try:
            for partition in range(self.num_partitions):
                path = self._path(side, partition)
                writers.append(pa.ipc.new_stream(path, self._schema, options=options))
            start = 0
            for ids in _in_batches(arrays, self._flush_rows, self._schema.field("id").type):
                self._deal_batch(ids, start, writers)
                start += len(ids)
        finally:
            for writer in writers:
                writer.close()

    def _deal_batch(self, ids: pa.Array, start: int, writers: list[pa.RecordBatchWriter]) -> None:
        partitions = (hash_ids(ids) % np.uint64(self.num_partitions)).astype(np.uint8)
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
        ids = _concat(table["id"].chunks, self._schema.field("id").type)
        return ids, table["row"].to_numpy()

    def _path(self, side: str, partition: int) -> str:
        return os.path.join(self._folder, f"{side}-{partition}.arrow")


def hash_ids(ids: pa.Array) -> UInt64Array:
    """64 well mixed bits of each id, equal for equal ids.

    Args:
        ids: ``int64`` or ``large_string``, without nulls.
    """
    if pa.types.is_int64(ids.type):
        return _mix(ids.to_numpy().view(np.uint64))
    _, offsets_buffer, data_buffer = ids.buffers()
    offsets = np.frombuffer(offsets_buffer, np.int64)[ids.offset : ids.offset + len(ids) + 1]
    starts, lengths = offsets[:-1] - offsets[0], np.diff(offsets)
    size = int(lengths.sum())
    padded = np.zeros(size + 8, np.uint8)  # so that eight bytes may be read from anywhere
    if size:
        padded[:size] = np.frombuffer(data_buffer, np.uint8)[offsets[0] : offsets[-1]]
    words = np.ndarray((size + 1,), "<u8", buffer=padded, strides=(1,))
    hashes = _mix(lengths.astype(np.uint64))
    alive = np.arange(len(ids))
    for at in range(0, int(lengths.max(initial=0)), 8):
        alive = alive[lengths[alive] > at]
        word = words[starts[alive] + at]
        bits_behind_end = np.clip(at + 8 - lengths[alive], 0, 7).astype(np.uint64) * np.uint64(8)
        hashes[alive] = _mix(hashes[alive] ^ (word << bits_behind_end))
    return hashes


def _mix(values: UInt64Array) -> UInt64Array:
    """The finaliser of splitmix64: every bit of the input reaches every bit of the output."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _as_manifest_ids(ids: pa.Array | pa.ChunkedArray, id_type: pa.DataType) -> pa.Array:
    if ids.null_count:
        raise ManifestError("the output holds rows without an image id: it was not written by this pipeline")
    is_right = pa.types.is_integer if pa.types.is_integer(id_type) else is_text
    if not is_right(ids.type):
        raise ManifestError(
            f"the output's image ids are {ids.type}, the manifest's are {id_type}: the output belongs to another "
            "manifest, or the manifest's ids have changed their type"
        )
    return _wide(ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids)


def _wide_type(id_type: pa.DataType) -> pa.DataType:
    return pa.int64() if pa.types.is_integer(id_type) else pa.large_string()  # string ends at 2 GB an array


def _wide(ids: pa.Array) -> pa.Array:
    return ids.cast(pa.int64() if pa.types.is_integer(ids.type) else pa.large_string())


def _concat(arrays: list[pa.Array], kind: pa.DataType) -> pa.Array:
    return pa.concat_arrays(arrays) if arrays else pa.array([], kind)


def _examples(ids: pa.Array, indices: Int64Array, known: list[int | str]) -> list[int | str]:
    return [ids[int(index)].as_py() for index in indices[: _NUM_EXAMPLES - len(known)]]


def _take(arrays: Iterator[pa.Array], num_rows: int) -> tuple[list[pa.Array], Iterator[pa.Array] | None]:
    """Arrays until they hold more than ``num_rows``; the others, or ``None`` if that was all."""
    taken: list[pa.Array] = []
    for array in arrays:
        taken.append(array)
        num_rows -= len(array)
        if num_rows < 0:
            return taken, arrays
    return taken, None


def _in_batches(arrays: Iterable[pa.Array], num_rows: int, kind: pa.DataType) -> Iterator[pa.Array]:
    """The same ids in arrays of about ``num_rows``: small ones together, long ones cut."""
    waiting: list[pa.Array] = []
    num_waiting = 0
    for array in arrays:
        for start in range(0, len(array), num_rows):
            waiting.append(array.slice(start, num_rows))
            num_waiting += len(waiting[-1])
            if num_waiting >= num_rows:
                yield _concat(waiting, kind)
                waiting, num_waiting = [], 0
    if waiting:
        yield _concat(waiting, kind)


def _read_ahead(read: Callable[[ReadUnit], pa.Array], units: Iterable[ReadUnit]) -> Iterator[pa.Array]:
    """``read`` of each unit, in order, the next few already under way."""
    with ThreadPoolExecutor(_READ_AHEAD) as pool:
        reading: deque[Future[pa.Array]] = deque()
        for unit in units:
            reading.append(pool.submit(read, unit))
            if len(reading) > _READ_AHEAD:
                yield reading.popleft().result()
        while reading:
            yield reading.popleft().result()
