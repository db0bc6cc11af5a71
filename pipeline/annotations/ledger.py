"""The output folder, which is also the ledger of what is done: no second state that could disagree with it.

::

    <uri>/data/part-<digest>.parquet   all data
    <uri>/run.json                     report of the last run (see ``run_json``)
    <uri>/_lock.json                   who may write (see ``lock``)
    <uri>/_scratch/                    may be deleted when no run is active

A data file appears whole or not at all, under a name made from the ids of its rows, so that a task that is
tried again writes the same name again. Nothing but :meth:`OutputStore.recover` and
:meth:`OutputStore.strip_failed` removes rows, and only the run that holds the lock may call them.

On S3 a multipart upload that is cut off (files over 100 MB only) leaves invisible parts that cost money; a
lifecycle rule of the bucket removes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.annotations.data_file import (
    Counts,
    Footer,
    Identity,
    OutputError,
    data_file_name,
    differences,
    encode_data_file,
)
from pipeline.annotations.data_folder import DATA_FOLDER, DataFolder, map_files
from pipeline.annotations.schema import FAILED
from pipeline.storage.objects.base import Entry, ObjectFolder
from pipeline.storage.objects.open import open_objects
from pipeline.storage.uris import Uri
from pipeline.storage.whole_file import temporary_names

COMPRESSION_LEVEL = 3

_REPORT_LEFTOVER = temporary_names(r"run\.json")
_REWRITES_AT_ONCE = 4  # each holds a file's rows in memory


class IdentityMismatch(OutputError):
    """The output holds rows of another model, other settings or another schema.

    Attributes:
        differences: ``key: old -> new``.
    """

    def __init__(self, message: str, differences: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.differences = tuple(differences)

    def __reduce__(self) -> tuple[type[IdentityMismatch], tuple[str, tuple[str, ...]]]:
        return type(self), (str(self), self.differences)


class DataFile(NamedTuple):
    """A file that was written."""

    name: str
    num_rows: int
    size_bytes: int


@dataclass(frozen=True)
class Recovery:
    """What was put right.

    Attributes:
        num_files: data files there are now.
        temporary: leftovers of writers that died, removed.
        half_written: files without a valid footer, removed; their images are pending again.
        replaced: files whose replacement was complete, removed.
    """

    num_files: int
    temporary: tuple[str, ...] = ()
    half_written: tuple[str, ...] = ()
    replaced: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Whether there was anything to do."""
        return bool(self.temporary or self.half_written or self.replaced)


@dataclass(frozen=True)
class OutputStore:
    """An output folder. Picklable; clients are opened where they are used.

    Attributes:
        uri: of the folder; need not exist.
        concurrency: requests at a time when many files are read.
        timeout_s: for one request to S3.
    """

    uri: Uri
    concurrency: int = 32
    timeout_s: float = 60.0

    def __reduce__(self) -> tuple[type[OutputStore], tuple[Uri, int, float]]:
        return type(self), (self.uri, self.concurrency, self.timeout_s)

    @cached_property
    def _files(self) -> DataFolder:
        return DataFolder(self.uri, self.concurrency)

    @property
    def scratch_uri(self) -> Uri:
        """For a run's intermediate files."""
        return self.uri / "_scratch"

    def write_rows(
        self,
        table: pa.Table,
        identity: Identity,
        compression_level: int = COMPRESSION_LEVEL,
        fence: Callable[[], None] | None = None,
    ) -> DataFile:
        """Write rows as one file, which appears whole or not at all.

        The file is built in memory first. The same ids in the same order give the same name, and the
        later file wins.

        Args:
            table: at least one row, of the output's schema; ids unique and not null.
            identity: what made the rows.
            compression_level: of zstd, 1 to 22.
            fence: called right before the file is written; raises if this run must not write any more
                (``OutputLock.fence``). A process that stalls between the call and the write can still
                come late: the closing audit finds such rows, as duplicates.

        Raises:
            ValueError: the table breaks the contract.
            OSError: the storage does.
        """
        return self._write(table, identity, compression_level, "", fence)

    def recover(self) -> Recovery:
        """Put right what a crash left behind; for the start of a run that holds the lock.

        Removes temporary files, data files that are cut off, and files whose replacement is complete.

        Raises:
            OutputError: there are files that this pipeline did not write, or a replacement that does not
                hold what it should. Nothing was removed.
        """
        objects = self._open()
        entries, temporary = self._files.list(objects)
        footers = list(map_files(lambda entry: self._files.footer_or_none(objects, entry), entries, self.concurrency))
        half_written = tuple(e.name for e, footer in zip(entries, footers, strict=True) if footer is None)
        names = {entry.name for entry in entries} - set(half_written)
        replaced = []
        for entry, footer in zip(entries, footers, strict=True):
            if footer is not None and footer.replaces in names:
                self._check_replacement(objects, entry, footer.replaces, entries)
                replaced.append(footer.replaces)
        # A half-written file that was replaced is only half-written; the order does not matter.
        for name in (*temporary, *half_written, *replaced):
            objects.delete(f"{DATA_FOLDER}/{name}")
        reports = [entry.name for entry in objects.list("").files if _REPORT_LEFTOVER.fullmatch(entry.name)]
        for name in reports:
            objects.delete(name)
        return Recovery(
            len(entries) - len(half_written) - len(replaced), (*temporary, *reports), half_written, tuple(replaced)
        )

    def identity(self) -> Identity | None:
        """What made the rows, as one of the files says; ``None`` if there are no data.

        Raises:
            OutputError: the files disagree.
        """
        footer = self._files.common_footer(self._open())
        return footer.identity if footer else None

    def check_identity(self, identity: Identity, schema: pa.Schema | None = None) -> None:
        """Raise unless rows of this identity belong in this output. An empty output takes any.

        Args:
            identity: of the run about to start.
            schema: of its rows, if the columns are to be compared too.

        Raises:
            IdentityMismatch: showing what changed.
            OutputError: the files disagree among themselves.
        """
        footer = self._files.common_footer(self._open())
        changed = differences(footer, identity, schema) if footer else []
        if changed:
            lines = "\n".join(f"  {line}" for line in changed)
            message = (
                f"{self.uri} holds results that were made with other settings (there -> now):\n{lines}\n"
                "Write to another output, or run with the settings that it was made with."
            )
            raise IdentityMismatch(message, changed)

    def iter_ids(self, columns: Sequence[str] = ("image_id",)) -> Iterator[pa.Table]:
        """Columns of all rows, a table a file, read ahead by ``concurrency`` files.

        Raises:
            OutputError: see `recover`.
        """
        objects = self._open()
        entries, _ = self._files.list(objects)
        return map_files(lambda entry: self._files.read(objects, entry, columns), entries, self.concurrency)

    def counts(self) -> Counts:
        """Rows by kind, from the footers.

        Raises:
            OutputError: see `recover`; or a file is cut off.
        """
        return Counts.total(footer.counts for _, footer in self._files.footers(self._open()))

    def strip_failed(self, compression_level: int = COMPRESSION_LEVEL) -> int:
        """Remove the failed rows, so that their images are pending again; how many there were.

        A file with failed rows is replaced by one without. The replacement names the file that it replaces
        and is complete before that is deleted: whoever reads in between finds rows twice, and after a crash
        `recover` deletes the old file.

        Raises:
            OutputError: see `recover`, which must have been called before.
        """
        objects = self._open()
        with_failures = [(entry, footer) for entry, footer in self._files.footers(objects) if footer.counts.failed]

        def strip(item: tuple[Entry, Footer]) -> int:
            entry, footer = item
            rows = self._files.read(objects, entry, None)
            kept = rows.filter(pc.not_equal(rows["status"], FAILED))
            if kept.num_rows:
                self._write(kept, footer.identity, compression_level, entry.name, None)
            objects.delete(f"{DATA_FOLDER}/{entry.name}")
            return rows.num_rows - kept.num_rows

        return sum(map_files(strip, with_failures, min(self.concurrency, _REWRITES_AT_ONCE)))

    def _open(self) -> ObjectFolder:
        return open_objects(self.uri, self.timeout_s)

    def _write(
        self,
        table: pa.Table,
        identity: Identity,
        compression_level: int,
        replaces: str,
        fence: Callable[[], None] | None,
    ) -> DataFile:
        content = encode_data_file(table, identity, compression_level, replaces)
        name = data_file_name(table["image_id"])
        if fence is not None:
            fence()
        self._open().put(f"{DATA_FOLDER}/{name}", content)
        return DataFile(name, table.num_rows, content.size)

    def _check_replacement(self, objects: ObjectFolder, new: Entry, old_name: str, entries: Iterable[Entry]) -> None:
        """Raise unless the new file holds all that is to be kept of the old one: no row may be lost by a mistake."""
        old = next(entry for entry in entries if entry.name == old_name)
        rows = self._files.read(objects, old, ["image_id", "status"])
        kept = rows.filter(pc.not_equal(rows["status"], FAILED))["image_id"]
        if data_file_name(kept) != new.name:
            raise OutputError(
                f"{new.name} claims to replace {old_name} in {self.uri}/{DATA_FOLDER} but holds other rows; "
                "remove one of them"
            )
