"""New rows of changed pictures in the place of the old ones, and what becomes of rows whose pictures are gone.

What a run annotates anew goes to an output of its own first, ``<output>/changed``. When the round is over, each data
file with such rows is replaced by one that has the new rows in their place: so readers see the old row of a picture
until its new one is there, and never both or none. Whatever a run that died has left in ``changed`` the next one puts
in place before it looks what is to be done; doing that twice changes nothing.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.annotations.data_file import Footer, Identity
from pipeline.annotations.ledger import CHANGED_FOLDER, DataFiles, OutputStore
from pipeline.annotations.schema import ANNOTATED, DELETED
from pipeline.storage.objects.base import Entry
from pipeline.tables.dealt import DealtRows
from pipeline.tables.ids import concat_ids, wide_type

# New rows lie on disk, dealt by the files that they go to, and those of one lot are in memory together.
_LOT_BYTES = 64 << 20
_MAX_LOTS = 256  # as many open files

Deleted = Literal["mark", "drop"]
Int64Array = NDArray[np.int64]
_NOWHERE: Int64Array = np.empty(0, np.int64)


@dataclass(frozen=True)
class Exchange:
    """Puts rows in the place of others.

    Attributes:
        store: the output, whose lock is held.
        fence: called right before each write and each removal; raises if this run must not write any more.
        compression_level: of zstd, 1 to 22.
    """

    store: OutputStore
    fence: Callable[[], None]
    compression_level: int

    @property
    def changed(self) -> OutputStore:
        """Where new rows of changed pictures are written."""
        return OutputStore(self.store.uri / CHANGED_FOLDER, self.store.concurrency, self.store.timeout_s)

    def put_in_place(
        self,
        identity: Identity,
        gone: Mapping[Entry, NDArray[np.bool_]] | None = None,
        deleted: Deleted = "mark",
        only_annotated: bool = False,
    ) -> int:
        """All new rows in the place of the old ones.

        A row without an old one, of a picture that was dropped meanwhile, becomes a row like any other.

        Args:
            identity: of this run: rows of another kind are not mixed.
            gone: files of the output, and of which of their rows the picture is gone.
            deleted: what becomes of these.
            only_annotated: failed rows replace nothing and are forgotten: they may have come of what ended the run.

        Returns:
            how many new rows there were.

        Raises:
            OutputError: there are files that are damaged, or that this pipeline did not write.
            IdentityMismatch: the new rows were made with other settings.
            Changed: another run writes there.
        """
        changed = self.changed
        new = changed.recover(self.fence).files
        if not new.footers and not gone:
            return 0
        new.check_identity(identity)
        files = self.store.files().settled
        rows = _NewRows.of(changed, new, only_annotated)
        places = self._places(files, rows) if rows.num_rows else {}
        touched = [entry for entry in files if entry in places or (gone and entry in gone)]
        with tempfile.TemporaryDirectory(prefix="exchange-") as folder:
            lots = _Lots(Path(folder), rows, touched, places)
            for entry, at, new_rows in lots.files():
                lost = None if gone is None else gone.get(entry)
                self._exchange(entry, files[entry], at, new_rows, lost, deleted)
            for table in lots.homeless():
                self.store.replace({}, table, identity, self.fence, self.compression_level)
        changed.make_way(new.footers, self.fence)
        return rows.num_rows

    def _places(self, files: Mapping[Entry, Footer], rows: _NewRows) -> dict[Entry, tuple[Int64Array, Int64Array]]:
        """For each file with old rows their positions in it, and the numbers of the new ones."""
        places = {}
        for entry, table in zip(files, self.store.iter_ids(files), strict=True):
            found = pc.index_in(concat_ids([table["image_id"]], rows.ids.type), value_set=rows.ids)
            if found.null_count == len(found):
                continue
            at = np.flatnonzero(found.is_valid().to_numpy(zero_copy_only=False))
            numbers = found.drop_null().to_numpy().astype(np.int64)
            places[entry] = at, numbers
        return places

    def _exchange(
        self,
        entry: Entry,
        footer: Footer,
        at: Int64Array,
        new_rows: pa.Table | None,
        gone: NDArray[np.bool_] | None,
        deleted: Deleted,
    ) -> None:
        (old,) = self.store.iter_ids([entry], None)
        order = np.arange(old.num_rows)
        order[at] = old.num_rows + np.arange(len(at))
        num_dropped = 0
        if gone is not None and deleted == "mark":
            status = pc.if_else(pa.array(gone), DELETED, old["status"])
            old = old.set_column(old.column_names.index("status"), old.schema.field("status"), status)
        elif gone is not None:
            order = order[~gone]
            num_dropped = old.num_rows - len(order)
        if new_rows is not None:
            old = pa.concat_tables([old, new_rows.select(old.column_names).cast(old.schema)])
        rows = old.take(pa.array(order))
        self.store.replace({entry: num_dropped}, rows, footer.identity, self.fence, self.compression_level)


@dataclass(frozen=True)
class _NewRows:
    """Rows that wait for their places, numbered in the order of files and rows; each id once.

    Attributes:
        ids: of the rows.
        chosen: of each file, which of its rows these are.
    """

    store: OutputStore
    ids: pa.Array
    chosen: Mapping[Entry, Int64Array]
    num_bytes: int

    @property
    def num_rows(self) -> int:
        """All of them."""
        return len(self.ids)

    @classmethod
    def of(cls, store: OutputStore, files: DataFiles, only_annotated: bool) -> _NewRows:
        entries = list(files.settled)
        ids, counts, usable = [], [], []
        for table in store.iter_ids(entries, ["image_id", "status"]):
            ids.append(table["image_id"])
            counts.append(table.num_rows)
            status = pc.equal(table["status"], ANNOTATED).to_numpy()
            usable.append(status if only_annotated else np.ones(table.num_rows, np.bool_))
        if not entries:
            return cls(store, pa.array([], pa.int64()), {}, 0)
        all_ids = concat_ids(ids, wide_type(ids[0].type))
        # A round that was repeated may have made a row twice; they say the same.
        codes = all_ids.dictionary_encode().indices.to_numpy()
        first = np.zeros(len(codes), np.bool_)
        first[np.unique(codes, return_index=True)[1]] = True
        keep = first & np.concatenate(usable)
        bounds = np.cumsum([0, *counts])
        chosen = {
            entry: np.flatnonzero(keep[start:stop])
            for entry, (start, stop) in zip(entries, pairwise(bounds), strict=True)
        }
        num_bytes = sum(entry.size_bytes for entry in entries)
        return cls(store, all_ids.filter(pa.array(keep)), chosen, num_bytes)

    def tables(self) -> Iterator[pa.Table]:
        """All columns, a file at a time."""
        entries = [entry for entry, rows in self.chosen.items() if len(rows)]
        for entry, table in zip(entries, self.store.iter_ids(entries, None), strict=True):
            yield table.take(pa.array(self.chosen[entry]))


class _Lots:
    """New rows on disk, dealt by the files that they go to: each is read once, however they are mixed.

    Args:
        folder: for the rows; whoever gives it removes it.
        rows: to be dealt.
        touched: files of the output, in their order.
        places: of the rows in them, as `Exchange._places` finds them.
    """

    def __init__(
        self,
        folder: Path,
        rows: _NewRows,
        touched: Sequence[Entry],
        places: Mapping[Entry, tuple[Int64Array, Int64Array]],
    ) -> None:
        self._places = places
        num_lots = max(1, min(_MAX_LOTS, len(touched), -(-rows.num_bytes // _LOT_BYTES)))
        bounds = np.linspace(0, len(touched), num_lots + 1).astype(int)
        self._lots = [list(touched[start:stop]) for start, stop in pairwise(bounds)]
        # What goes to no file is behind all others.
        self._lot_of_row = np.full(rows.num_rows, num_lots, np.int64)
        for number, entries in enumerate(self._lots):
            for entry in entries:
                if entry in places:
                    self._lot_of_row[places[entry][1]] = number
        start = 0
        with DealtRows(folder) as self._dealt:
            for table in rows.tables():
                self._dealt.add(table, self._lot_of_row[start : start + table.num_rows])
                start += table.num_rows

    def files(self) -> Iterator[tuple[Entry, Int64Array, pa.Table | None]]:
        """Each file, the positions of rows that are exchanged, and the new ones; ``None`` if there are none."""
        for number, entries in enumerate(self._lots):
            rows, numbers = self._dealt.read(number), np.flatnonzero(self._lot_of_row == number)
            for entry in entries:
                at, wanted = self._places.get(entry, (_NOWHERE, _NOWHERE))
                yield entry, at, None if rows is None else rows.take(pa.array(np.searchsorted(numbers, wanted)))

    def homeless(self) -> Iterator[pa.Table]:
        """Rows that go to no file, some at a time."""
        return self._dealt.batches(len(self._lots))
