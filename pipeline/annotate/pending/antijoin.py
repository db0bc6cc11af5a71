"""Which rows of a manifest are still to be done: an exact anti-join of its ids with those of an output.

Where a `Comparison` is given, the version of each picture takes part: rows of an output that were made from another one
than the manifest speaks of are *changed*, and to be done again.

Up to ``memory_rows`` ids the join is one hash join in memory. Beyond, both sides are dealt into partitions on disk
by a hash of the id, and each pair of partitions is joined on its own. Ids are compared whole: the hash only
decides where a comparison takes place, so its collisions cost time and never a row.

Memory: about ``memory_rows`` ids of either side, plus one byte for each row of the manifest, and with a comparison
another one, and one for each row of the output.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.annotate.config import ManifestConfig
from pipeline.annotate.manifest.open import Manifest
from pipeline.annotate.manifest.rules import ManifestError, ReadUnit
from pipeline.annotate.manifest.versions import ETAG, MTIME, SIZE
from pipeline.annotate.pending.id_partitions import IdPartitions, Int64Array, Part
from pipeline.annotations.data_file import Counts, OutputError
from pipeline.annotations.ledger import DataFiles, OutputStore
from pipeline.annotations.schema import DELETED
from pipeline.messages.counts import counted
from pipeline.messages.examples import NUM_EXAMPLES, Examples
from pipeline.storage.map_ahead import map_ahead
from pipeline.storage.objects.base import Entry
from pipeline.storage.uris import Uri, UriText
from pipeline.tables.arrow_types import in_one_piece, is_text
from pipeline.tables.ids import wide, wide_type

_READ_AHEAD = 4  # units
MARKED_BEFORE = "marked as deleted before, to be dropped"  # what a run and a dry run call these rows


class DuplicateIdError(ManifestError):
    """Ids that stand in the manifest more than once."""


@dataclass(frozen=True)
class Pending:
    """The books: ``num_rows = num_done + num_pending + num_changed``.

    Rows seen in ``done`` = ``num_done + num_changed + num_marked`` + both counts of examples.

    Attributes:
        packed: the units that have pending rows, each with a bit a row (``np.packbits``): 12.5 MB for 100 million.
        num_rows: rows of the manifest.
        num_pending: rows whose id is not in ``done``.
        num_done: rows whose id is, of the version that the manifest speaks of, as far as both are known.
        duplicate_done: surplus rows of ``done``, beyond the first of each id.
        doubled: the first of these ids.
        unknown_done: ids in ``done`` that the manifest does not have.
        changed: as ``packed``, of rows whose id is in ``done``, of another version; none without a comparison.
        num_changed: how many these are.
        num_marked: rows of ``done`` that are marked as deleted already, and are.
        num_unlisted: rows of the manifest that do not say which version they speak of.
        num_unknown: rows of ``num_done`` of which the manifest or the output does not know the version.
        gone: a bit for each row of ``done``, in the order in which they came: that of an unknown id, not marked yet;
            or marked, too, where the comparison drops these.
    """

    packed: tuple[tuple[ReadUnit, NDArray[np.uint8]], ...]
    num_rows: int
    num_pending: int
    num_done: int
    duplicate_done: Examples
    unknown_done: Examples
    changed: tuple[tuple[ReadUnit, NDArray[np.uint8]], ...] = ()
    num_changed: int = 0
    num_marked: int = 0
    num_unlisted: int = 0
    num_unknown: int = 0
    gone: NDArray[np.uint8] | None = None
    doubled: tuple[int | str, ...] = ()

    @property
    def num_to_do(self) -> int:
        """Images to be annotated."""
        return self.num_pending + self.num_changed

    def changed_alone(self) -> Pending:
        """As if the changed rows were all that is pending."""
        return replace(self, packed=self.changed, num_pending=self.num_changed, changed=(), num_changed=0)

    def all_to_do(self) -> Pending:
        """As if changed rows were pending like new ones."""
        bits = dict(self.packed)
        for unit, changed in self.changed:
            bits[unit] = bits[unit] | changed if unit in bits else changed
        return replace(self, packed=tuple(bits.items()), num_pending=self.num_to_do, changed=(), num_changed=0)

    def iter_units(self) -> Iterator[tuple[ReadUnit, Int64Array]]:
        """Units with their pending rows' indices, ascending; one unit unpacked at a time."""
        for unit, bits in self.packed:
            yield unit, np.flatnonzero(np.unpackbits(bits, count=unit.num_rows))

    @property
    def units(self) -> list[tuple[ReadUnit, Int64Array]]:
        """All of :meth:`iter_units` at once: 8 bytes a pending row."""
        return list(self.iter_units())


_MARKS = pa.struct(
    [
        ("etag", pa.large_string()),
        ("size", pa.int64()),
        ("mtime", pa.int64()),
        ("own", pa.bool_()),
        ("deleted", pa.bool_()),
    ]
)
# By what is compared: marks that tell versions apart, and columns that marks are made of. Times say what is later, too.
_COMPARED = {"none": (), "etag": ("etag",), "size_mtime": ("size", "mtime")}
_NEEDED = {"none": (), "etag": (ETAG, MTIME), "size_mtime": (SIZE, MTIME)}


@dataclass(frozen=True)
class Comparison:
    """How rows of an output are compared with those of the manifest, beyond their ids.

    Attributes:
        by: what tells one version of a picture from another.
        run_id: the run that asks. Its own rows are up to date: a picture that changes while it is annotated ends with
            the version that was read.
        is_live: whether the manifest was listed by this run. One that was made before may be older than a row: what was
            read from a later modification than it knows is up to date.
        drops_marked: whether rows that are marked as deleted, and are, are to go like those of pictures gone since.
    """

    by: Literal["none", "etag", "size_mtime"]
    run_id: str
    is_live: bool
    drops_marked: bool = False

    @classmethod
    def of(
        cls, config: ManifestConfig, manifest: Manifest, has_marked_rows: bool, run_id: str = ""
    ) -> Comparison | None:
        """What a config asks for; ``None`` where ids alone tell what there is to do.

        Args:
            has_marked_rows: whether the output has rows that are marked as deleted.
            run_id: of a run; none for who only looks.
        """
        if config.compare == "none" and config.deleted == "keep" and not has_marked_rows:
            return None
        return cls(config.compare, run_id, manifest.is_live, config.deleted == "drop")

    @property
    def columns(self) -> tuple[str, ...]:
        """Those of the output's rows that are needed."""
        return ("image_id", "status", *(() if self.by == "none" else ("run_id", *_NEEDED[self.by])))

    def of_rows(self, rows: pa.Table) -> Part:
        """Rows of the output, of :attr:`columns`."""
        own = pc.fill_null(pc.equal(rows["run_id"], self.run_id), False) if self.by != "none" else None
        return Part(rows["image_id"], self._marks(rows, own, pc.equal(rows["status"], DELETED)))

    def of_manifest(self, ids: pa.Array, versions: pa.Table) -> Part:
        """Rows of the manifest, as `Manifest.read_versions` tells them."""
        return Part(ids, self._marks(versions, None, None))

    def _marks(self, rows: pa.Table, own: pa.ChunkedArray | None, deleted: pa.ChunkedArray | None) -> pa.StructArray:
        columns = [
            in_one_piece(rows[name].cast(field.type)) if name in _NEEDED[self.by] else pa.nulls(len(rows), field.type)
            for field, name in zip(_MARKS, (ETAG, SIZE, MTIME), strict=False)
        ]
        flags = [pa.repeat(False, len(rows)) if flag is None else in_one_piece(flag) for flag in (own, deleted)]
        return pa.StructArray.from_arrays([*columns, *flags], fields=list(_MARKS))

    def tells(self, marks: pa.StructArray) -> NDArray[np.bool_]:
        """Of N marks, which say something of a version."""
        known = np.zeros(len(marks), np.bool_)
        for name in _COMPARED[self.by]:
            known |= marks.field(name).is_valid().to_numpy(zero_copy_only=False)
        return known

    def judge(self, listed: pa.StructArray, read: pa.StructArray) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Of N pictures whose rows are there: which have changed, and of which that cannot be known.

        Args:
            listed: the manifest's marks.
            read: the output's.
        """
        known = np.full(len(read), self.by == "none")  # where nobody asks, nothing is missing
        changed = np.zeros(len(read), np.bool_)
        for name in _COMPARED[self.by]:
            different = pc.not_equal(listed.field(name), read.field(name))
            known |= different.is_valid().to_numpy(zero_copy_only=False)
            changed |= different.fill_null(False).to_numpy(zero_copy_only=False)
        if not self.is_live:
            later = pc.greater(read.field("mtime"), listed.field("mtime"))
            changed &= ~later.fill_null(False).to_numpy(zero_copy_only=False)
        own, deleted = (read.field(name).to_numpy(zero_copy_only=False) for name in ("own", "deleted"))
        # A picture whose row is marked as deleted is there again.
        return (changed & ~own) | deleted, ~(known | own | deleted)


def find_pending(
    manifest: Manifest,
    done: Iterable[pa.Array | pa.ChunkedArray | pa.Table],
    *,
    comparison: Comparison | None = None,
    among: Pending | None = None,
    memory_rows: int = 1_000_000,
    tmp_dir: str | None = None,
) -> Pending:
    """Join the manifest's ids with those of the output, and check both for duplicates.

    Args:
        manifest: its ids are read once, a few units ahead.
        done: arrays of ids, of any length; each is asked for when the one before is dealt with. With a comparison,
            tables of its columns.
        comparison: takes versions into account; ``None`` for ids alone.
        among: what an earlier join of the same manifest left pending: only these rows are joined. An id of any other
            row counts as unknown.
        memory_rows: ids to hold in memory, of either side.
        tmp_dir: where partitions go, 1 to 2 times the size of all ids; the system's own if ``None``. Removed
            before this returns.

    Raises:
        DuplicateIdError: the manifest holds an id twice.
        ManifestError: a null id, or ids of the output that are not of the manifest's type.
    """
    kind, marks = wide_type(manifest.id_type), _MARKS if comparison else None
    of_rows = Part if comparison is None else comparison.of_rows
    parts = (_checked(of_rows(each), manifest.id_type) for each in done)
    side = _ManifestSide(manifest, among, comparison)
    in_memory, rest = _take(parts, memory_rows)
    if side.num_rows <= memory_rows and rest is None:
        joined = Part.joined(in_memory, kind, marks)
        result = _Result(side, comparison, len(joined.ids))
        rows, rows_done = np.arange(side.num_rows), np.arange(len(joined.ids))
        result.join(Part.joined(list(side.parts()), kind, marks), rows, joined, rows_done)
    else:
        with tempfile.TemporaryDirectory(prefix="antijoin-", dir=tmp_dir) as folder:
            sides = IdPartitions(folder, manifest.id_type, side.num_rows, memory_rows, marks)
            result = _Result(side, comparison, sides.deal("done", chain(in_memory, rest or ())))
            in_memory.clear()
            sides.deal("manifest", side.parts())
            for partition in range(sides.num_partitions):
                result.join(*sides.read("manifest", partition), *sides.read("done", partition))
    return result.close()


class Audit:
    """What of a manifest is pending, asked again and again while files come to the output.

    The first time the ids of all files are read, then those of the files that came since, which are joined with what
    was pending. That is exact: a file that is listed as it was holds what it held. As soon as anything else has
    happened (a file is gone, is another one, or counts no more; a new id was not pending), all ids are read again.

    Args:
        manifest: must stay what it is.
        store: the output.
        comparison: takes versions into account; ``None`` for ids alone.
    """

    def __init__(self, manifest: Manifest, store: OutputStore, comparison: Comparison | None = None) -> None:
        self._manifest = manifest
        self._store = store
        self._comparison = comparison
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
            pending = find_pending(self._manifest, self._rows(files.settled), comparison=self._comparison)
        self._seen, self._pending = frozenset(files.settled), pending
        return pending

    def _of_new(self, files: DataFiles) -> Pending | None:
        """``None`` where the new files do not tell all."""
        before = self._pending
        if before is None or not self._seen <= files.settled.keys() or not all(entry.version for entry in self._seen):
            return None
        new = [entry for entry in files.settled if entry not in self._seen]
        now = find_pending(self._manifest, self._rows(new), comparison=self._comparison, among=before)
        if now.duplicate_done.count or now.unknown_done.count or now.num_changed or now.num_marked:
            return None
        num_done = now.num_done - before.num_changed
        return replace(before, packed=now.packed, num_pending=now.num_pending, num_done=num_done, gone=None)

    def _rows(self, files: Iterable[Entry]) -> Iterator[pa.ChunkedArray | pa.Table]:
        if self._comparison is None:
            return (table["image_id"] for table in self._store.iter_ids(files))
        return self._store.iter_ids(files, self._comparison.columns)


def check_doubled(pending: Pending, store: OutputStore, files: DataFiles) -> None:
    """No image has two rows.

    Args:
        pending: of these files.
        store: the output.

    Raises:
        OutputError: some have; the message names files in which they are.
    """
    if not (count := pending.duplicate_done.count):
        return
    names = []
    for entry, table in zip(files.settled, store.iter_ids(files.settled), strict=True):
        ids = table["image_id"]
        if pc.any(pc.is_in(pa.array(pending.doubled, ids.type), value_set=ids)).as_py():
            names.append(entry.name)
    raise OutputError(
        f"{counted(count, 'image')} {'is' if count == 1 else 'are'} more than once in {store.uri} "
        f"({pending.duplicate_done}; in {Examples.of(names)}): something else wrote there as well. Move the files away "
        "that do not belong there, and run again"
    )


def check_listing(pending: Pending, config: ManifestConfig, output: Uri, counts: Counts) -> None:
    """A manifest tells what it is compared by, and does not lack too much.

    Args:
        pending: of a comparison, or not.
        output: its URI.
        counts: of its rows.

    Raises:
        ManifestError: it is otherwise.
    """
    if config.compare != "none" and pending.num_unlisted == pending.num_rows:
        tells = "no ETag" if config.compare == "etag" else "neither sizes nor times"
        raise ManifestError(
            f"manifest.compare is {config.compare}, and {config.uri} tells {tells} of any image: set it to "
            "what is told there (docs/annotation.md, Changed pictures), or to none"
        )
    num_gone = pending.unknown_done.count
    if config.deleted != "keep" and num_gone > config.max_deleted_fraction * counts.images:
        raise ManifestError(
            f"{config.uri} lacks {num_gone:,} of the {counted(counts.images, 'image')} in {output}, more than "
            f"manifest.max_deleted_fraction ({config.max_deleted_fraction:g}): is the listing complete? Nothing was "
            "changed. If these pictures are gone, raise max_deleted_fraction for this run"
        )


def rows_by_file(files: DataFiles, bits: NDArray[np.uint8]) -> dict[Entry, NDArray[np.bool_]]:
    """Rows of an output by their files, of those that have any.

    Args:
        files: that `Audit.look` saw.
        bits: a bit for each of their rows, in their order (`Pending.gone`).
    """
    found = {}
    start = 0
    for entry, footer in files.settled.items():
        stop = start + footer.counts.rows
        chosen = np.unpackbits(bits[start // 8 : -(-stop // 8)])[start % 8 :][: stop - start].astype(np.bool_)
        start = stop
        if chosen.any():
            found[entry] = chosen
    return found


class _ManifestSide:
    """The rows of a manifest that are joined, numbered from 0 on in the order in which they are read.

    Args:
        manifest: read anew by each call of `parts`.
        among, comparison: see `find_pending`.
    """

    def __init__(self, manifest: Manifest, among: Pending | None, comparison: Comparison | None) -> None:
        self.manifest = manifest
        self._comparison = comparison
        self.num_rows = manifest.num_rows if among is None else among.num_pending
        self._among = among

    def units(self) -> Iterator[tuple[ReadUnit, Int64Array]]:
        """Units with their rows' indices, ascending."""
        if self._among is not None:
            return self._among.iter_units()
        return ((unit, np.arange(unit.num_rows)) for unit in self.manifest.units)

    def parts(self) -> Iterator[Part]:
        """The ids of the rows, a unit at a time."""
        return map_ahead(self._read, self.units(), _READ_AHEAD, _READ_AHEAD)

    def _read(self, unit_rows: tuple[ReadUnit, Int64Array]) -> Part:
        unit, rows = unit_rows
        ids, marks = wide(self.manifest.read_ids(unit)), None
        if self._comparison is not None:
            ids, marks = self._comparison.of_manifest(ids, self._versions(unit))
        if len(rows) == len(ids):
            return Part(ids, marks)
        chosen = pa.array(rows)
        return Part(ids.take(chosen), None if marks is None else marks.take(chosen))

    def _versions(self, unit: ReadUnit) -> pa.Table:
        if self._comparison is not None and self._comparison.by != "none":
            return self.manifest.read_versions(unit)
        return pa.table({"rows": pa.nulls(unit.num_rows)})

    def name_row(self, row: int) -> str:
        """Where the user finds the row of a number."""
        for unit, rows in self.units():
            if row < len(rows):
                return self.manifest.name_row(unit, int(rows[row]))
            row -= len(rows)
        raise AssertionError("a row behind the manifest's end")


class _Result:
    """Joins pairs of partitions and adds up what it finds."""

    def __init__(self, side: _ManifestSide, comparison: Comparison | None, num_done: int) -> None:
        self._side = side
        self._comparison = comparison
        self._pending = np.ones(side.num_rows, dtype=bool)
        self._changed = np.zeros(side.num_rows if comparison else 0, dtype=bool)
        self._gone = np.zeros(num_done if comparison else 0, dtype=bool)
        self._num_marked = self._num_unknown = self._num_unlisted = 0
        self._num_twice = 0
        self._twice: list[tuple[int, int | str, int]] = []  # first row, id, how often
        self._duplicate_done = self._unknown_done = Examples()
        self._doubled: tuple[int | str, ...] = ()

    def join(self, listed: Part, rows: Int64Array, there: Part, rows_done: Int64Array) -> None:
        """All of an id's rows of either side must be in the same call.

        Args:
            listed: of the manifest.
            rows: their numbers in it.
            there: of the output.
            rows_done: their numbers in it.
        """
        ids, done = listed.ids, there.ids
        self._find_twice(ids, rows)
        found = pc.index_in(done, value_set=ids)
        known = found.drop_null().to_numpy()
        self._pending[rows[known]] = False
        self._count_duplicates(ids, np.bincount(known, minlength=len(ids)))
        if self._comparison is not None and listed.marks is not None and there.marks is not None:
            marks = there.marks.filter(found.is_valid())
            changed, unknown_version = self._comparison.judge(listed.marks.take(pa.array(known)), marks)
            self._changed[rows[known[changed]]] = True
            self._num_unlisted += int(np.count_nonzero(~self._comparison.tells(listed.marks)))
            self._num_unknown += int(np.count_nonzero(unknown_version))
        if found.null_count:
            lacking = found.is_null()
            if there.marks is not None:
                marked = pc.and_(lacking, there.marks.field("deleted"))
                self._num_marked += pc.sum(marked).as_py() or 0
                unlisted, lacking = lacking, pc.and_not(lacking, marked)
                gone = unlisted if self._comparison is not None and self._comparison.drops_marked else lacking
                self._gone[rows_done[gone.to_numpy(zero_copy_only=False)]] = True
            unknown = done.filter(lacking).dictionary_encode()
            different = unknown.dictionary
            self._unknown_done += _examples(different, np.arange(len(different)), len(different))
            self._count_duplicates(different, np.bincount(unknown.indices.to_numpy()))

    def _count_duplicates(self, ids: pa.Array, counts: Int64Array) -> None:
        repeated = np.flatnonzero(counts > 1)
        first = (ids[int(index)].as_py() for index in repeated[:NUM_EXAMPLES])
        self._doubled = (*self._doubled, *first)[:NUM_EXAMPLES]
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
        num_rows = self._side.manifest.num_rows
        num_pending, num_changed = (int(np.count_nonzero(which)) for which in (self._pending, self._changed))
        return Pending(
            packed=self._packed(self._pending),
            num_rows=num_rows,
            num_pending=num_pending,
            num_done=num_rows - num_pending - num_changed,
            duplicate_done=self._duplicate_done,
            unknown_done=self._unknown_done,
            changed=self._packed(self._changed) if num_changed else (),
            num_changed=num_changed,
            num_marked=self._num_marked,
            num_unlisted=self._num_unlisted,
            num_unknown=self._num_unknown,
            gone=None if self._comparison is None else np.packbits(self._gone),
            doubled=self._doubled,
        )

    def _packed(self, which: NDArray[np.bool_]) -> tuple[tuple[ReadUnit, NDArray[np.uint8]], ...]:
        packed = []
        start = 0
        for unit, rows in self._side.units():
            chosen = which[start : start + len(rows)]
            start += len(rows)
            if chosen.any():
                mask = np.zeros(unit.num_rows, dtype=bool)
                mask[rows[chosen]] = True
                packed.append((unit, np.packbits(mask)))
        return tuple(packed)

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


def _checked(part: Part, id_type: pa.DataType) -> Part:
    ids = part.ids
    if ids.null_count:
        raise ManifestError("the output holds rows without an image id: it was not written by this pipeline")
    is_right = pa.types.is_integer if pa.types.is_integer(id_type) else is_text
    if not is_right(ids.type):
        raise ManifestError(
            f"the output's image ids are {ids.type}, the manifest's are {id_type}: the output belongs to another "
            "manifest, or the manifest's ids have changed their type"
        )
    return part


def _examples(ids: pa.Array, indices: Int64Array, count: int) -> Examples:
    return Examples.of((repr(ids[int(index)].as_py()) for index in indices[:NUM_EXAMPLES]), count)


def _take(parts: Iterator[Part], num_rows: int) -> tuple[list[Part], Iterator[Part] | None]:
    """Parts until they hold more than ``num_rows``; the others, or ``None`` if that was all."""
    taken: list[Part] = []
    for part in parts:
        taken.append(part)
        num_rows -= len(part.ids)
        if num_rows < 0:
            return taken, parts
    return taken, None
