"""Which rows of a manifest are still to be done: an exact anti-join of its ids with those of an output.

Up to ``memory_rows`` ids the join is one hash join in memory. Beyond, both sides are dealt into partitions on disk
by a hash of the id, and each pair of partitions is joined on its own. Ids are compared whole: the hash only
decides where a comparison takes place, so its collisions cost time and never a row.

Memory: about ``memory_rows`` ids of either side, plus one byte for each row of the manifest.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.annotate.manifest.open import Manifest
from pipeline.annotate.manifest.rules import ManifestError, ReadUnit
from pipeline.annotate.pending.id_partitions import IdPartitions, Int64Array
from pipeline.annotations.ledger import DataFiles, OutputStore
from pipeline.messages.counts import counted
from pipeline.messages.examples import NUM_EXAMPLES, Examples
from pipeline.storage.map_ahead import map_ahead
from pipeline.storage.objects.base import Entry
from pipeline.storage.uris import UriText
from pipeline.tables.arrow_types import is_text
from pipeline.tables.ids import concat_ids, wide, wide_type

_READ_AHEAD = 4  # units


class DuplicateIdError(ManifestError):
    """Ids that stand in the manifest more than once."""


@dataclass(frozen=True)
class Pending:
    """The books: ``num_rows = num_done + num_pending``; rows seen in ``done`` = ``num_done`` + both counts of examples.

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
    duplicate_done: Examples
    unknown_done: Examples

    def iter_units(self) -> Iterator[tuple[ReadUnit, Int64Array]]:
        """Units with their pending rows' indices, ascending; one unit unpacked at a time."""
        for unit, bits in self.packed:
            yield unit, np.flatnonzero(np.unpackbits(bits, count=unit.num_rows))

    @property
    def units(self) -> list[tuple[ReadUnit, Int64Array]]:
        """All of :meth:`iter_units` at once: 8 bytes a pending row."""
        return list(self.iter_units())


def find_pending(
    manifest: Manifest,
    done: Iterable[pa.Array | pa.ChunkedArray],
    *,
    among: Pending | None = None,
    memory_rows: int = 1_000_000,
    tmp_dir: str | None = None,
) -> Pending:
    """Join the manifest's ids with those of the output, and check both for duplicates.

    Args:
        manifest: its ids are read once, a few units ahead.
        done: arrays of ids, of any length; each is asked for when the one before is dealt with.
        among: what an earlier join of the same manifest left pending: only these rows are joined. An id of any other
            row counts as unknown.
        memory_rows: ids to hold in memory, of either side.
        tmp_dir: where partitions go, 1 to 2 times the size of all ids; the system's own if ``None``. Removed
            before this returns.

    Raises:
        DuplicateIdError: the manifest holds an id twice.
        ManifestError: a null id, or ids of the output that are not of the manifest's type.
    """
    ids_done = (_checked(ids, manifest.id_type) for ids in done)
    side = _ManifestSide(manifest, among)
    result = _Result(side)
    in_memory, rest = _take(ids_done, memory_rows)
    if side.num_rows <= memory_rows and rest is None:
        kind = wide_type(manifest.id_type)
        rows = np.arange(side.num_rows)
        result.join(concat_ids(list(side.ids()), kind), rows, concat_ids(in_memory, kind))
    else:
        with tempfile.TemporaryDirectory(prefix="antijoin-", dir=tmp_dir) as folder:
            sides = IdPartitions(folder, manifest.id_type, side.num_rows, memory_rows)
            sides.deal("done", chain(in_memory, rest or ()))
            in_memory.clear()
            sides.deal("manifest", side.ids())
            for partition in range(sides.num_partitions):
                result.join(*sides.read("manifest", partition), sides.read("done", partition)[0])
    return result.close()


class Audit:
    """What of a manifest is pending, asked again and again while files come to the output.

    The first time the ids of all files are read, then those of the files that came since, which are joined with what
    was pending. That is exact: a file that is listed as it was holds what it held. As soon as anything else has
    happened (a file is gone, is another one, or counts no more; a new id was not pending), all ids are read again.

    Args:
        manifest: must stay what it is.
        store: the output.
    """

    def __init__(self, manifest: Manifest, store: OutputStore) -> None:
        self._manifest = manifest
        self._store = store
        self._seen: frozenset[Entry] = frozenset()
        self._pending: Pending | None = None

    def look(self, files: DataFiles) -> Pending:
        """The books of these files.

        Args:
            files: as they were listed just now.

        Raises:
            OutputError: a file is damaged.
            DuplicateIdError, ManifestError: see `find_pending`.
        """
        pending = self._of_new(files)
        if pending is None:
            pending = find_pending(self._manifest, self._ids(files.settled))
        self._seen, self._pending = frozenset(files.settled), pending
        return pending

    def _of_new(self, files: DataFiles) -> Pending | None:
        """``None`` where the new files do not tell all."""
        before = self._pending
        if before is None or not self._seen <= files.settled.keys() or not all(entry.version for entry in self._seen):
            return None
        new = [entry for entry in files.settled if entry not in self._seen]
        now = find_pending(self._manifest, self._ids(new), among=before)
        if now.duplicate_done.count or now.unknown_done.count:
            return None
        return replace(now, duplicate_done=before.duplicate_done, unknown_done=before.unknown_done)

    def _ids(self, files: Iterable[Entry]) -> Iterator[pa.ChunkedArray]:
        return (table["image_id"] for table in self._store.iter_ids(files))


class _ManifestSide:
    """The rows of a manifest that are joined, numbered from 0 on in the order in which they are read.

    Args:
        manifest: read anew by each call of `ids`.
        among: see `find_pending`.
    """

    def __init__(self, manifest: Manifest, among: Pending | None) -> None:
        self.manifest = manifest
        self.num_rows = manifest.num_rows if among is None else among.num_pending
        self._among = among

    def units(self) -> Iterator[tuple[ReadUnit, Int64Array]]:
        """Units with their rows' indices, ascending."""
        if self._among is not None:
            return self._among.iter_units()
        return ((unit, np.arange(unit.num_rows)) for unit in self.manifest.units)

    def ids(self) -> Iterator[pa.Array]:
        """The ids of the rows, a unit at a time."""
        return map_ahead(self._read, self.units(), _READ_AHEAD, _READ_AHEAD)

    def _read(self, unit_rows: tuple[ReadUnit, Int64Array]) -> pa.Array:
        unit, rows = unit_rows
        ids = wide(self.manifest.read_ids(unit))
        return ids if len(rows) == len(ids) else ids.take(pa.array(rows))

    def name_row(self, row: int) -> str:
        """Where the user finds the row of a number."""
        for unit, rows in self.units():
            if row < len(rows):
                return self.manifest.name_row(unit, int(rows[row]))
            row -= len(rows)
        raise AssertionError("a row behind the manifest's end")


class _Result:
    """Joins pairs of partitions and adds up what it finds."""

    def __init__(self, side: _ManifestSide) -> None:
        self._side = side
        self._pending = np.ones(side.num_rows, dtype=bool)
        self._num_twice = 0
        self._twice: list[tuple[int, int | str, int]] = []  # first row, id, how often
        self._duplicate_done = self._unknown_done = Examples()

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
            self._unknown_done += _examples(different, np.arange(len(different)), len(different))
            self._count_duplicates(different, np.bincount(unknown.indices.to_numpy()))

    def _count_duplicates(self, ids: pa.Array, counts: Int64Array) -> None:
        repeated = np.flatnonzero(counts > 1)
        self._duplicate_done += _examples(ids, repeated, int(counts[repeated].sum()) - len(repeated))

    def _find_twice(self, ids: pa.Array, rows: Int64Array) -> None:
        encoded = ids.dictionary_encode()
        if len(encoded.dictionary) == len(ids):
            return
        codes = encoded.indices.to_numpy()
        counts = np.bincount(codes)
        twice = np.flatnonzero(counts > 1)
        self._num_twice += len(twice)
        for code in twice[:NUM_EXAMPLES]:  # codes are in the order of first rows
            first_row = int(rows[np.argmax(codes == code)])
            self._twice.append((first_row, encoded.dictionary[int(code)].as_py(), int(counts[code])))

    def close(self) -> Pending:
        """Check the manifest, and cut what is pending by unit."""
        self._raise_for_duplicates()
        packed = []
        start = 0
        for unit, rows in self._side.units():
            pending = self._pending[start : start + len(rows)]
            start += len(rows)
            if pending.any():
                mask = np.zeros(unit.num_rows, dtype=bool)
                mask[rows[pending]] = True
                packed.append((unit, np.packbits(mask)))
        num_rows = self._side.manifest.num_rows
        num_pending = int(np.count_nonzero(self._pending))
        return Pending(
            packed=tuple(packed),
            num_rows=num_rows,
            num_pending=num_pending,
            num_done=num_rows - num_pending,
            duplicate_done=self._duplicate_done,
            unknown_done=self._unknown_done,
        )

    def _raise_for_duplicates(self) -> None:
        if not self._num_twice:
            return
        named = []
        for first_row, identifier, count in sorted(self._twice)[:NUM_EXAMPLES]:
            shown = repr(str(UriText(identifier))) if isinstance(identifier, str) else identifier
            named.append(f"{shown} {count} times (first in {self._side.name_row(first_row)})")
        occur = "occurs" if self._num_twice == 1 else "occur"
        cure = "name another id_column"
        if self._side.manifest.columns.id is None:
            cure = "give the manifest a column of ids (id_column): without one the URIs are the ids"
        raise DuplicateIdError(
            f"{self._side.manifest.uri}: {counted(self._num_twice, 'image id')} {occur} more than once: "
            f"{Examples.of(named, self._num_twice)}. Every image needs an id of its own: remove the repeated rows or "
            f"{cure}"
        )


def _checked(ids: pa.Array | pa.ChunkedArray, id_type: pa.DataType) -> pa.Array | pa.ChunkedArray:
    if ids.null_count:
        raise ManifestError("the output holds rows without an image id: it was not written by this pipeline")
    is_right = pa.types.is_integer if pa.types.is_integer(id_type) else is_text
    if not is_right(ids.type):
        raise ManifestError(
            f"the output's image ids are {ids.type}, the manifest's are {id_type}: the output belongs to another "
            "manifest, or the manifest's ids have changed their type"
        )
    return ids


def _examples(ids: pa.Array, indices: Int64Array, count: int) -> Examples:
    return Examples.of((repr(ids[int(index)].as_py()) for index in indices[:NUM_EXAMPLES]), count)


def _take(arrays: Iterator[Any], num_rows: int) -> tuple[list[Any], Iterator[Any] | None]:
    """Arrays until they hold more than ``num_rows``; the others, or ``None`` if that was all."""
    taken: list[Any] = []
    for array in arrays:
        taken.append(array)
        num_rows -= len(array)
        if num_rows < 0:
            return taken, arrays
    return taken, None
