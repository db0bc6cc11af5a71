"""The output folder, which is also the ledger of what is done: no second state that could disagree with it.

::

    <uri>/data/part-<digest>.parquet           all data
    <uri>/data/part-<digest>-<token>.parquet   likewise: what took the place of others, see `OutputStore.replace`
    <uri>/changed/                             rows that are to take the place of others (see `CHANGED_FOLDER`)
    <uri>/run.json                             report of the last run (see ``run_json``)
    <uri>/summary.html                         the same for people, drawn when a run has ended
    <uri>/comparison.json, .html               what changed with the last run, where ``drift`` asks for it
    <uri>/_lock.json                           who may write (see ``lock``)
    <uri>/_scratch/<run id>/                   may be deleted when no run is active
    <uri>/_delta_log/                          the log of the Delta table that the files are published to, if they are

A data file appears whole or not at all, under a name made from the ids of its rows, so that a task that is
tried again writes the same name again. One without rows stands for files of which no row stays, and which are kept for
earlier versions of a table. Only :meth:`OutputStore.recover`, :meth:`OutputStore.replace` and
:meth:`OutputStore.make_way` remove files. Each asks the fence right before each removal, and removes only the version
that it has read: a run that slept through its lease must not remove what the next has written.

On S3 a multipart upload that is cut off (files over 100 MB only) leaves invisible parts that cost money; a
lifecycle rule of the bucket removes them.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
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
from pipeline.annotations.data_folder import (
    DATA_FOLDER,
    DATA_NAME,
    DataFolder,
    Superfluous,
    map_files,
    no_output,
    settled,
)
from pipeline.annotations.run_json import NAME as REPORT_NAME
from pipeline.annotations.run_json import RunJson
from pipeline.annotations.schema import FAILED, made_by
from pipeline.storage.lock.claim import OutputKind, check_own
from pipeline.storage.objects.base import Entry, ObjectFolder, TooLarge
from pipeline.storage.objects.open import open_objects
from pipeline.storage.uris import Uri
from pipeline.storage.whole_file import temporary_names

COMPRESSION_LEVEL = 3


def _holds_annotations(uri: Uri, names: frozenset[str]) -> bool | None:
    """By the report, or else by a data file: to list those takes longer. A report that is damaged tells nothing."""
    run = None
    if REPORT_NAME in names:
        with suppress(OutputError, TooLarge):
            run = RunJson.read(uri)
    if run is not None and run.run_id and run.identity:
        return True
    files = open_objects(uri).list(DATA_FOLDER).files if f"{DATA_FOLDER}/" in names else []
    if any(DATA_NAME.fullmatch(entry.name) for entry in files):
        return True
    return None if run is None else False


PAGE_NAME = "summary.html"
# Of the last run, compared with others.
COMPARISON_NAME, COMPARISON_PAGE_NAME = "comparison.json", "comparison.html"
# An output of its own, where new rows of changed pictures wait for their places: no reader takes it for results.
CHANGED_FOLDER = "changed"
DELTA_LOG = "_delta_log"
_OWN_FILES = "|".join(map(re.escape, (REPORT_NAME, PAGE_NAME, COMPARISON_NAME, COMPARISON_PAGE_NAME)))
_OWN_NAMES = re.compile(rf"{_OWN_FILES}|({DATA_FOLDER}|{CHANGED_FOLDER}|{DELTA_LOG})/")
ANNOTATIONS = OutputKind("the annotate job", _OWN_NAMES, _holds_annotations)
PROBE = "dry-run"  # a temporary name is made of it

_LEFTOVER = temporary_names(rf"({_OWN_FILES}|{PROBE})")
_REWRITES_AT_ONCE = 4  # each holds a file's rows in memory


def check_output(uri: Uri) -> None:
    """Raise unless a folder is an annotate job's output with data, for jobs that change one.

    Raises:
        OutputError, ForeignFolder: it is not.
        OSError: it cannot be listed.
    """
    try:
        folders = open_objects(uri).list("").folders
    except NotADirectoryError:
        folders = []
    if DATA_FOLDER not in folders:
        raise OutputError(no_output(uri, "has no data"))
    check_own(uri, ANNOTATIONS)


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
class DataFiles:
    """The data files of an output as one listing showed them.

    Attributes:
        folder: they are in.
        footers: of each, in the order of the names.
    """

    folder: DataFolder
    footers: Mapping[Entry, Footer]

    @cached_property
    def settled(self) -> Mapping[Entry, Footer]:
        """Those that count: without the ones whose rows others hold as well."""
        return settled(self.footers)

    @cached_property
    def counts(self) -> Counts:
        """Rows by kind, from the footers of the files that count."""
        return Counts.total(footer.counts for footer in self.settled.values())

    def identity(self) -> Identity | None:
        """What made the rows, as one of the files says; ``None`` if there are no data.

        Raises:
            OutputError: the files disagree.
        """
        footer = self.folder.agreed(self.footers)
        return footer.identity if footer else None

    def check_identity(self, identity: Identity, schema: pa.Schema | None = None) -> None:
        """Raise unless rows of this identity belong in this output.

        An empty output takes any, and so does one of which every row failed: see `in_the_way`.

        Args:
            identity: of the run about to start.
            schema: of its rows, if the columns are to be compared too.

        Raises:
            IdentityMismatch: showing what changed.
            OutputError: the files disagree among themselves.
        """
        if not self._has_annotated():
            return
        footer = self.folder.agreed(self.footers)
        changed = differences(footer, identity, schema) if footer else []
        if changed:
            message = (
                f"{self.folder.uri} holds results that were made with other settings (there -> now): "
                f"{'; '.join(changed)}. Write to another output, or run with the settings that it was made with"
            )
            raise IdentityMismatch(message, changed)

    def in_the_way(self, identity: Identity, schema: pa.Schema) -> dict[Entry, Footer]:
        """Files of rows that failed under other settings, where nothing succeeded; see `OutputStore.make_way`."""
        if self._has_annotated():
            return {}
        return {entry: footer for entry, footer in self.settled.items() if differences(footer, identity, schema)}

    def _has_annotated(self) -> bool:
        return any(footer.counts.annotated for footer in self.settled.values())


@dataclass(frozen=True)
class Recovery:
    """What was put right.

    Attributes:
        files: that there are now.
        temporary: leftovers of writers that died, removed.
        half_written: files that are cut off, removed; their images are pending again.
        replaced: files whose replacement was complete, and those without rows that named them; removed.
        doubled: files whose rows another one holds as well, removed, or kept as those that were replaced.
    """

    files: DataFiles = field(compare=False, repr=False)
    temporary: tuple[str, ...] = ()
    half_written: tuple[str, ...] = ()
    replaced: tuple[str, ...] = ()
    doubled: tuple[str, ...] = ()

    @property
    def num_files(self) -> int:
        """How many there are now."""
        return len(self.files.footers)

    def __bool__(self) -> bool:
        """Whether there was anything to do."""
        return bool(self.temporary or self.half_written or self.replaced or self.doubled)


@dataclass(frozen=True)
class OutputStore:
    """An output folder. Picklable; clients are opened where they are used.

    Attributes:
        uri: of the folder; need not exist.
        concurrency: requests at a time when many files are read.
        timeout_s: for one request to S3.
        keep_replaced: whether files whose rows are replaced or removed stay, for earlier versions of a table that has
            them. They count for nothing, and no file is written under their names.
    """

    uri: Uri
    concurrency: int = 32
    timeout_s: float = 60.0
    keep_replaced: bool = False

    def __reduce__(self) -> tuple[type[OutputStore], tuple[Uri, int, float, bool]]:
        return type(self), (self.uri, self.concurrency, self.timeout_s, self.keep_replaced)

    @classmethod
    def as_last_run(cls, uri: Uri) -> OutputStore:
        """An output whose replaced files stay if they do so by the config of its last run.

        Raises:
            OutputError: ``run.json`` is damaged.
        """
        report = RunJson.read(uri)
        return cls(uri, keep_replaced=report is not None and report.keeps_replaced)

    @cached_property
    def folder(self) -> DataFolder:
        """Of the data files: as long as this object lives, their footers are read once."""
        return DataFolder(self.uri, self.concurrency)

    def write_rows(
        self,
        table: pa.Table,
        identity: Identity,
        compression_level: int = COMPRESSION_LEVEL,
        fence: Callable[[], None] | None = None,
    ) -> DataFile:
        """Write rows as one file, which appears whole or not at all.

        The file is built in memory first. The same ids in the same order give the same name, and the
        later file wins; where replaced files are kept, in one run.

        Args:
            table: at least one row, of the output's schema; ids unique and not null. ``run_id`` is filled here.
            identity: what made the rows.
            compression_level: of zstd, 1 to 22.
            fence: called right before the file is written; raises if this run must not write any more
                (``OutputLock.fence``). A process that stalls between the call and the write can still
                come late: the closing audit finds such rows, as duplicates.

        Raises:
            ValueError: the table breaks the contract.
            OSError: the storage does.
        """
        content = encode_data_file(made_by(table, identity.run_id), identity, compression_level)
        token = hashlib.sha256(identity.run_id.encode()).hexdigest()[:8] if self.keep_replaced else ""
        return self._put(data_file_name(table["image_id"], token), table.num_rows, content, fence)

    def recover(self, fence: Callable[[], None]) -> Recovery:
        """Put right what a crash left behind; for the start of a run that holds the lock.

        Removes temporary files and data files that are cut off; and, unless they are kept, files whose replacement is
        complete, and all but one of those that hold the same ids.

        Args:
            fence: called right before each removal; raises if this run must not write any more.

        Raises:
            OutputError: there are files that this pipeline did not write, or that are damaged, or a replacement
                that does not hold what it should. Nothing was removed.
            Changed: another run writes there.
        """
        objects = self._open()
        listed, temporary = self.folder.list(objects)
        footers = list(map_files(lambda entry: self.folder.footer_or_none(objects, entry), listed, self.concurrency))
        whole = {entry: footer for entry, footer in zip(listed, footers, strict=True) if footer is not None}
        half_written = [entry for entry in listed if entry not in whole]
        superfluous = Superfluous.among(whole)
        if self.keep_replaced:
            superfluous = Superfluous({}, superfluous.doubled, [])
        self._check_superfluous(objects, superfluous, whole)
        there = {entry.name for entry in whole.keys() - superfluous.replaced.keys()}
        without_rows = [(entry, footer.replaces) for entry, footer in whole.items() if not footer.counts.rows]
        done = [entry for entry, replaces in without_rows if there.isdisjoint(replaces)]
        # What is doubled may be what says that others were replaced.
        for entries in (*superfluous.in_order, half_written, done):
            self._remove_all(objects, entries, fence)
        self.make_way({entry: whole[entry] for entry in superfluous.doubled}, fence)
        others = [entry.name for entry in objects.list("").files if _LEFTOVER.fullmatch(entry.name)]
        for name in (*(f"{DATA_FOLDER}/{name}" for name in temporary), *others):
            fence()
            objects.delete(name)  # nobody else has, or will have, this name
        groups = (half_written, [*superfluous.replaced, *done], [*superfluous.doubled])
        names = (tuple(entry.name for entry in group) for group in groups)
        kept = {entry: whole[entry] for entry in sorted(whole.keys() - set(chain.from_iterable(groups)))}
        return Recovery(DataFiles(self.folder, kept), (*temporary, *others), *names)

    def files(self) -> DataFiles:
        """The data files, listed anew.

        Raises:
            OutputError: see `recover`; or a file is cut off.
        """
        return DataFiles(self.folder, self.folder.footers(self._open()))

    def look(self) -> DataFiles:
        """The data files that count, for whoever does not hold the lock: others may write and replace files meanwhile.

        Raises:
            OutputError: see `files`; or they do not belong together.
            ReadFailed: one of them is gone before it was read.
        """
        return DataFiles(self.folder, self.folder.current(self._open()))

    def iter_ids(self, files: Iterable[Entry], columns: Sequence[str] | None = ("image_id",)) -> Iterator[pa.Table]:
        """Columns of all rows of some files, a table a file, read ahead by ``concurrency`` files.

        Args:
            files: of the output.
            columns: ``None`` for all.

        Raises:
            OutputError: a file is damaged, or cut off.
        """
        objects = self._open()
        return map_files(lambda entry: self.folder.read(objects, entry, columns), list(files), self.concurrency)

    def replace(
        self,
        old: Mapping[Entry, int],
        rows: pa.Table,
        identity: Identity,
        fence: Callable[[], None],
        compression_level: int = COMPRESSION_LEVEL,
    ) -> DataFile | None:
        """Put one file in the place of some, in one step: whoever reads by `settled` sees the old rows or the new ones.

        The new file names those that it replaces and is complete before they are deleted. After a crash `recover`
        deletes those that are left; whoever reads the folder in between with other tools finds rows twice.

        Its rows may be newer ones of the same images, and there may be fewer and more of them. What says that nothing
        was lost by a mistake is that the new file has all ids of each old one but for as many as were left out on
        purpose; that number stands in its footer, and `recover` counts again before it deletes anything.

        Args:
            old: files, each with how many of its ids are not among the rows. One of which none is left is not to be
                named, but replaced on its own by no rows: a file with its ids may come again some day.
            rows: of the output's schema; ids unique and not null. With none, the old files are deleted and no more; or
                kept, as all that are replaced.
            identity: what made the rows.
            fence: called right before each write and each removal; raises if this run must not write any more.
            compression_level: of zstd, 1 to 22.

        Returns:
            the new file; ``None`` if there are no rows.

        Raises:
            ValueError: the rows break the contract.
            Changed: another run writes there.
        """
        new = None
        if rows.num_rows or self.keep_replaced:
            replaces = {entry.name: left_out for entry, left_out in old.items()}
            content = encode_data_file(rows, identity, compression_level, replaces)
            if rows.num_rows:
                name = data_file_name(rows["image_id"], uuid.uuid4().hex[:8])
            else:
                name = data_file_name(pa.chunked_array([sorted(replaces)]))  # which no other file has for its ids
            new = self._put(name, rows.num_rows, content, fence)
        if not self.keep_replaced:
            self._remove_all(self._open(), list(old), fence)
        return new if rows.num_rows else None

    def strip_failed(self, fence: Callable[[], None], compression_level: int = COMPRESSION_LEVEL) -> int:
        """Remove the failed rows, so that their images are pending again; how many there were.

        Args:
            fence, compression_level: see `replace`.

        Raises:
            OutputError: see `recover`, which must have been called before.
            Changed: another run writes there.
        """
        objects = self._open()
        footers = settled(self.folder.footers(objects)).items()
        all_failed = {entry: footer for entry, footer in footers if footer.counts.failed == footer.counts.rows}
        with_failures = [item for item in footers if item[1].counts.failed and item[0] not in all_failed]

        def strip(item: tuple[Entry, Footer]) -> int:
            entry, footer = item
            rows = self.folder.read(objects, entry, None)
            kept = rows.filter(pc.not_equal(rows["status"], FAILED))
            num_failed = rows.num_rows - kept.num_rows
            self.replace({entry: num_failed}, kept, footer.identity, fence, compression_level)
            return num_failed

        num_failed = sum(map_files(strip, with_failures, min(self.concurrency, _REWRITES_AT_ONCE)))
        return num_failed + self.make_way(all_failed, fence)

    def make_way(self, files: Mapping[Entry, Footer], fence: Callable[[], None]) -> int:
        """Remove rows; how many there were.

        A wrong image root fails every image. Once it is corrected, the images are pending again, under the corrected
        settings. An output that holds an annotated row is left as it is.

        Args:
            files: that are `DataFiles.in_the_way` of the run about to start, or whose rows are elsewhere.
            fence: see `replace`.

        Raises:
            Changed: see `replace`.
        """
        if not files:
            return 0
        latest = max(files.values(), key=lambda footer: footer.identity.run_id)
        num_rows = {entry: footer.counts.rows for entry, footer in files.items()}
        self.replace(num_rows, latest.schema.empty_table(), latest.identity, fence)
        return sum(num_rows.values())

    def _open(self) -> ObjectFolder:
        return open_objects(self.uri, self.timeout_s)

    def _put(self, name: str, num_rows: int, content: pa.Buffer, fence: Callable[[], None] | None) -> DataFile:
        if fence is not None:
            fence()
        self._open().put(f"{DATA_FOLDER}/{name}", content)
        return DataFile(name, num_rows, content.size)

    def _remove_all(self, objects: ObjectFolder, entries: Sequence[Entry], fence: Callable[[], None]) -> None:
        def remove(entry: Entry) -> None:
            fence()
            objects.delete(f"{DATA_FOLDER}/{entry.name}", entry)

        for _ in map_files(remove, entries, self.concurrency):
            pass

    def _check_superfluous(
        self, objects: ObjectFolder, superfluous: Superfluous, footers: Mapping[Entry, Footer]
    ) -> None:
        """Raise unless others hold all that is to be kept of these files: no row may be lost by a mistake."""
        old_by_new: dict[Entry, list[Entry]] = {}
        for old, new in superfluous.replaced.items():
            old_by_new.setdefault(new, []).append(old)
        for new, replaced in old_by_new.items():
            held = self.folder.read(objects, new, ["image_id"])["image_id"]
            for old in replaced:
                left_out = footers[new].replaces[old.name]
                rows = self.folder.read(objects, old, ["image_id", "status"])
                if left_out is None:
                    rows, left_out = rows.filter(pc.not_equal(rows["status"], FAILED)), 0
                ids = rows["image_id"]
                if ids.type != held.type or pc.is_in(ids, value_set=held).to_pylist().count(False) != left_out:
                    raise self._not_the_same(f"{new.name} claims to replace {old.name}", "holds other rows")
        for one, other in superfluous.doubled.items():
            ids = (self.folder.read(objects, entry, ["image_id"])["image_id"] for entry in (one, other))
            if len({data_file_name(each) for each in ids}) > 1:
                raise self._not_the_same(f"{one.name} has the name of {other.name}", "holds other rows")

    def _not_the_same(self, claim: str, fact: str) -> OutputError:
        return OutputError(f"{claim} in {self.uri}/{DATA_FOLDER} but {fact}; remove one of them")
