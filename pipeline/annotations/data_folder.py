"""The folder of an output's data files: which of its files are ours, and what their footers say."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any, TypeVar

import pyarrow as pa

from pipeline.annotations.data_file import (
    Damaged,
    Footer,
    Identity,
    NotParquet,
    OutputError,
    RowsOfFile,
    open_data_file,
    parse_footer,
    read_footer,
)
from pipeline.messages.examples import Examples
from pipeline.storage.map_ahead import map_ahead
from pipeline.storage.objects.base import Entry, ObjectFolder, ReadFailed, is_of_content
from pipeline.storage.objects.open import open_objects
from pipeline.storage.uris import Uri, hide_secrets
from pipeline.storage.whole_file import temporary_names

DATA_FOLDER = "data"

_NAME = r"part-[0-9a-f]{20}(-[0-9a-f]{8})?\.parquet"
DATA_NAME = re.compile(_NAME)
_TEMPORARY_NAME = temporary_names(_NAME)
_STEM_LENGTH = len("part-") + 20
_CATEGORY_COLUMNS = [f"detections.list.element.{name}" for name in ("category_id", "category_name")]
_ROWS_PER_BATCH = 256
_LOOKS = 5  # at a folder whose files are being replaced

Item = TypeVar("Item")
Result = TypeVar("Result")


def no_output(uri: Uri, lack: str) -> str:
    """What is wrong with a folder that was given as an annotate job's output and is none.

    Args:
        uri: of the folder.
        lack: what is not in it, in words; said where neither its absence nor another folder explains that.

    Raises:
        UriError: it cannot be opened.
    """
    try:
        files, folders = open_objects(uri).list("")
    except NotADirectoryError:
        return f"{uri} is a file: give the output folder of an annotate job"
    names = [entry.name for entry in files] + [f"{name}/" for name in folders]
    if not names:
        return f"{uri} does not exist, or is empty: it is no output of an annotate job"
    if any(DATA_NAME.fullmatch(name) for name in names):
        return f"{uri} is the folder of an output's data files: give the folder that it is in"
    return f"{uri} {lack}, and holds {Examples.of(sorted(names))}: is it the output of an annotate job?"


class DataFolder:
    """The data files of an output, of which each footer is read once: for checking, counting, and reading rows.

    A file is the same as long as listings show it with the same size and version. Where they tell no versions, nothing
    is kept.

    Args:
        uri: of the output folder, which holds the folder of data files.
        concurrency: footers to read at a time.
    """

    def __init__(self, uri: Uri, concurrency: int) -> None:
        self.uri = uri
        self._concurrency = concurrency
        self._footers: dict[Entry, Footer] = {}
        self._kinds: dict[Identity, list[Footer]] = {}
        self._contents = _Packed()

    def list(self, objects: ObjectFolder) -> tuple[list[Entry], list[str]]:
        """Data files, and names of temporary files.

        Raises:
            OutputError: there are files that this pipeline did not write.
        """
        entries, foreign, temporary = self._listed(objects)
        self._refuse(foreign)
        return [*entries], [*temporary]

    def _listed(self, objects: ObjectFolder) -> tuple[Sequence[Entry], Sequence[str], Sequence[str]]:
        """Data files, and names of what is foreign and of what is temporary."""
        files, folders = objects.list(DATA_FOLDER)
        visible = [entry for entry in files if not entry.name.startswith((".", "_"))]
        foreign = [entry.name for entry in visible if not DATA_NAME.fullmatch(entry.name)]
        foreign += [f"{name}/" for name in folders if not name.startswith((".", "_"))]
        entries = [entry for entry in visible if DATA_NAME.fullmatch(entry.name)]
        return entries, foreign, [entry.name for entry in files if _TEMPORARY_NAME.fullmatch(entry.name)]

    def _refuse(self, foreign: Sequence[str]) -> None:
        if foreign:
            raise OutputError(
                f"{self.uri}/{DATA_FOLDER} holds files that this pipeline did not write: "
                f"{Examples.of(foreign)}. Move them away, or choose another output."
            )

    def footer_or_none(self, objects: ObjectFolder, entry: Entry) -> Footer | None:
        """``None`` for a file that is cut off.

        Raises:
            OutputError: it is Parquet, but this pipeline did not write it, or not as it is; or it is damaged.
        """
        if entry not in self._footers:
            try:
                with self._named(entry):
                    content = read_footer(objects, f"{DATA_FOLDER}/{entry.name}", entry)
                    footer = parse_footer(content)
            except NotParquet:
                return None
            if footer is None:
                self._refuse([entry.name])
                return None
            if entry.name in footer.replaces:
                raise OutputError(f"{self.uri}/{DATA_FOLDER}/{entry.name} claims to replace itself: move it away")
            if not entry.version:
                return footer
            self._contents.put(entry, content)
            self._footers[entry] = self._lean(footer)
        return self._footers[entry]

    def _lean(self, footer: Footer) -> Footer:
        """The same, sharing what nearly all files have in common: a footer of its own takes 10 kB."""
        kinds = self._kinds.setdefault(footer.identity, [])
        for kind in kinds:
            if footer.schema.equals(kind.schema):
                return replace(footer, identity=kind.identity, schema=kind.schema)
        kinds.append(footer)
        return footer

    def footers(self, objects: ObjectFolder) -> dict[Entry, Footer]:
        """All data files with their footers, in the order of the names.

        Raises:
            OutputError: see `list`; or a file is cut off.
        """
        entries, _ = self.list(objects)
        found = {}
        footers = map_files(lambda entry: self.footer_or_none(objects, entry), entries, self._concurrency)
        for entry, footer in zip(entries, footers, strict=True):
            if footer is None:
                raise OutputError(self._cut_off(entry))
            found[entry] = footer
        return found

    def survey(self, objects: ObjectFolder) -> Survey:
        """What there is, whatever state it is in, and though files may be written and replaced meanwhile."""
        found, strange = self._look(objects)
        problems = {entry: str(each) for entry, each in found.items() if not isinstance(each, Footer)}
        footers = {entry: each for entry, each in found.items() if isinstance(each, Footer)}
        counting = settled(footers)
        disagreement = ""
        try:
            self.agreed(footers)
        except OutputError as error:
            disagreement = str(error)
        superfluous = Superfluous.among(footers)
        left = tuple(superfluous.replaced), tuple(superfluous.doubled)
        return Survey(self, counting, *left, problems, tuple(strange), disagreement)

    def current(self, objects: ObjectFolder) -> dict[Entry, Footer]:
        """The files that count, see `settled`, which belong together; for readers, as `survey`.

        Raises:
            OutputError: see `footers`; or the files disagree.
        """
        found, strange = self._look(objects)
        self._refuse(strange)
        footers = {}
        for entry, each in found.items():
            if not isinstance(each, Footer):
                raise each
            footers[entry] = each
        self.agreed(footers)
        return settled(footers)

    def _look(self, objects: ObjectFolder) -> tuple[dict[Entry, Footer | OutputError | OSError], Sequence[str]]:
        """Data files in the order of the names, with what is wrong where the footer cannot be had; and foreign names.

        No listing shows all names at one moment. Where files are replaced meanwhile, one may show neither the new file,
        whose name it had passed by, nor an old one, to which it had not come. But the old one was in the listing
        before; so one is good if it lacks nothing of that but what its own files replace, and else another look tells.
        """
        found: dict[Entry, Footer | OutputError | OSError] = {}
        entries: Sequence[Entry] = ()
        for look in range(_LOOKS):
            before = entries
            entries, strange, _ = self._listed(objects)
            known = {entry: found[entry] for entry in (*before, *entries) if entry in found}
            new = [entry for entry in entries if entry not in known]
            footers = map_files(lambda entry: self._footer_or_problem(objects, entry), new, self._concurrency)
            found = known | dict(zip(new, footers, strict=True))
            accounted = {entry.name for entry in entries}
            accounted.update(name for each in found.values() if isinstance(each, Footer) for name in each.replaces)
            gone = [entry for entry in before if entry.name not in accounted]
            if look and not gone:
                break
        return {entry: found[entry] for entry in sorted((*entries, *gone))}, strange

    def _footer_or_problem(self, objects: ObjectFolder, entry: Entry) -> Footer | OutputError | OSError:
        try:
            footer = self.footer_or_none(objects, entry)
        except (OutputError, OSError) as error:
            return error
        return OutputError(self._cut_off(entry)) if footer is None else footer

    def agreed(self, footers: Mapping[Entry, Footer]) -> Footer | None:
        """What all files but the replaced ones agree in, as the footer of one of them; ``None`` if there is none.

        Raises:
            OutputError: the files disagree.
        """
        first: tuple[Entry, Footer] | None = None
        odd: list[str] = []
        replaced = Superfluous.among(footers).replaced
        for entry, footer in footers.items():
            if entry in replaced or not footer.counts.rows:
                continue
            if first is None:
                first = entry, footer
            elif _key(footer) != _key(first[1]):
                odd.append(entry.name)
        if first is None:
            return None
        if odd:
            raise OutputError(
                f"the files in {self.uri}/{DATA_FOLDER} were made with different weights, settings or "
                f"schemas: {Examples.of(odd)} and {first[0].name} do not belong together"
            )
        return first[1]

    @contextmanager
    def open(self, objects: ObjectFolder, entry: Entry) -> Iterator[RowsOfFile]:
        """A file for reading. All that is read of data files is read through this, in the block.

        Raises:
            OutputError: the file is damaged, here or when its rows are read.
            OSError: the storage does not give it.
        """
        with self._named(entry):
            try:
                footer = self._contents.get(entry)
                with open_data_file(objects, f"{DATA_FOLDER}/{entry.name}", entry, footer) as file:
                    yield file
            except NotParquet:
                raise OutputError(self._cut_off(entry)) from None

    def read(self, objects: ObjectFolder, entry: Entry, columns: Sequence[str] | None) -> pa.Table:
        """Columns of a file, or all of them, without the footer's metadata.

        Raises:
            OutputError, OSError: see `open`.
        """
        with self.open(objects, entry) as file:
            table = file.read(columns)
        return table.replace_schema_metadata(None)

    def category_names(self, objects: ObjectFolder, footers: Mapping[Entry, Footer]) -> dict[int, str]:
        """Names of the categories of which the footers count detections, from the rows: no more files than tell them.

        Raises:
            OutputError, OSError: see `open`.
        """
        wanted = {i for footer in footers.values() for i in footer.counts.detections_by_category}
        missing = set(wanted)
        names: dict[int, str] = {}
        for entry, footer in footers.items():
            if missing.isdisjoint(footer.counts.detections_by_category):
                continue
            with self.open(objects, entry) as file:
                for batch in file.iter_batches(_ROWS_PER_BATCH, _CATEGORY_COLUMNS):
                    detections = batch.column("detections").flatten()
                    pairs = pa.table({name: detections.field(name) for name in ("category_id", "category_name")})
                    unique = pairs.group_by(["category_id", "category_name"]).aggregate([]).to_pylist()
                    names.update((pair["category_id"], pair["category_name"]) for pair in unique)
                if not footer.counts.detections_by_category.keys() <= names.keys():
                    raise Damaged("its footer counts detections of other categories than its rows have")
            missing -= names.keys()
        return {i: name for i, name in names.items() if i in wanted}  # others are of rows whose pictures are gone

    @contextmanager
    def _named(self, entry: Entry) -> Iterator[None]:
        """What is wrong with a file, with its name and what to do."""
        place = f"{self.uri}/{DATA_FOLDER}/{entry.name}"
        try:
            yield
        except NotParquet:
            raise
        except (Damaged, pa.ArrowException, OSError) as error:
            if isinstance(error, FileNotFoundError):
                raise ReadFailed(f"{place} is gone: it was replaced after the output was listed; try again") from None
            if isinstance(error, OSError) and not is_of_content(error):
                kind = ReadFailed if type(error) is OSError else type(error)
                raise kind(f"{place} cannot be read: {hide_secrets(str(error))}") from None
            reason = hide_secrets(" ".join(str(error).split()))[:300]
            raise OutputError(
                f"{place} is damaged ({reason}). Move it away and run annotate again, which makes its images anew; "
                "nothing else is lost"
            ) from None

    def _cut_off(self, entry: Entry) -> str:
        return f"{self.uri}/{DATA_FOLDER}/{entry.name} is cut off; run again to recover"


class _Packed:
    """Footers as they differ from the first one: 300 bytes of 10 kB each."""

    def __init__(self) -> None:
        self._first = b""
        self._packed: dict[Entry, bytes] = {}
        self._lock = Lock()

    def put(self, entry: Entry, content: bytes) -> None:
        """Keep the footer of a file."""
        with self._lock:
            self._first = self._first or content
        packer = zlib.compressobj(wbits=-zlib.MAX_WBITS, zdict=self._first)
        self._packed[entry] = packer.compress(content) + packer.flush()

    def get(self, entry: Entry) -> bytes | None:
        """The footer; ``None`` if it was not kept."""
        packed = self._packed.get(entry)
        return None if packed is None else zlib.decompressobj(-zlib.MAX_WBITS, zdict=self._first).decompress(packed)


@dataclass(frozen=True)
class Survey:
    """A folder of data files as it was found, for those who look and change nothing.

    Attributes:
        folder: that was looked at; it knows the footers.
        footers: the files that count, with their footers; they need not belong together.
        replaced: files that others stand in the place of, see `Superfluous`. They stay for the earlier versions of a
            table, or the next run removes them.
        doubled: files with the ids of another one; the next run removes them.
        problems: files that cannot be read, with why and what to do.
        foreign: names of what this pipeline did not write.
        disagreement: which files do not belong together, or "".
    """

    folder: DataFolder
    footers: Mapping[Entry, Footer]
    replaced: tuple[Entry, ...]
    doubled: tuple[Entry, ...]
    problems: Mapping[Entry, str]
    foreign: tuple[str, ...]
    disagreement: str


@dataclass(frozen=True)
class Superfluous:
    """Files in whose place others stand, or whose rows others hold as well.

    A run that died while it replaced files has left both; one that slept meanwhile, and woke when another had done
    the same, has left a second replacement. Where replaced files are kept (`OutputStore`), all are here.

    Attributes:
        replaced: files that another one names as those that it replaces, with that one.
        doubled: files with the ids of another one, in the same order, with the one that stays.
        in_order: those that were replaced, as they are to be removed, one group after the other: first those whose
            replacement was itself replaced, or nobody would know it any more.
    """

    replaced: Mapping[Entry, Entry]
    doubled: Mapping[Entry, Entry]
    in_order: Sequence[Sequence[Entry]]

    @classmethod
    def among(cls, footers: Mapping[Entry, Footer]) -> Superfluous:
        """Find them by names and footers alone."""
        named = {name: entry for entry, footer in footers.items() for name in footer.replaces}
        replaced_by = {entry: named[entry.name] for entry in footers if entry.name in named} if named else {}
        by_generation: dict[int, list[Entry]] = {}
        for entry in replaced_by:
            by_generation.setdefault(_generations(entry, replaced_by), []).append(entry)
        by_generation.pop(0, None)
        in_order = [by_generation[number] for number in sorted(by_generation, reverse=True)]
        replaced = {entry: replaced_by[entry] for entries in in_order for entry in entries}
        same_ids: dict[str, list[Entry]] = {}
        for entry, footer in footers.items():
            if entry not in replaced and footer.counts.rows:
                same_ids.setdefault(stem(entry.name), []).append(entry)

        def merit(entry: Entry) -> tuple[bool, int, str]:
            # A file that replaced one is later than one that says nothing, and came late, with the same ids.
            return bool(footers[entry].replaces), footers[entry].counts.annotated, entry.name

        doubled = {}
        for entries in same_ids.values():
            stays = max(entries, key=merit) if len(entries) > 1 else entries[0]
            doubled.update({entry: stays for entry in entries if entry != stays})
        return cls(replaced, doubled, in_order)


def _generations(entry: Entry, replaced_by: Mapping[Entry, Entry]) -> int:
    """How many files came after one, each in place of the one before; 0 if they go in a circle, which says nothing."""
    seen = [entry]
    while (entry := replaced_by.get(entry, entry)) != seen[-1]:
        if entry in seen:
            return 0
        seen.append(entry)
    return len(seen) - 1


def settled(footers: Mapping[Entry, Footer]) -> dict[Entry, Footer]:
    """The files that count: without those that `Superfluous` finds, and those that have no rows."""
    superfluous = Superfluous.among(footers)
    left_out = {*superfluous.replaced, *superfluous.doubled}
    return {entry: footer for entry, footer in footers.items() if footer.counts.rows and entry not in left_out}


def stem(name: str) -> str:
    """What names of files with the same ids in the same order have in common."""
    return name[:_STEM_LENGTH]


def map_files(work: Callable[[Item], Result], items: Sequence[Item], concurrency: int) -> Iterator[Result]:
    """Results in order; at most twice ``concurrency`` of them wait to be taken."""
    return map_ahead(work, items, max(1, min(concurrency, len(items))), 2 * concurrency)


def _key(footer: Footer) -> tuple[Any, ...]:
    version = None if footer.is_readable else footer.schema_version
    return version, footer.identity.weights_sha256, footer.identity.config_digest, footer.schema
