"""The folder of an output's data files: which of its files are ours, and what their footers say."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.annotations.data_file import Damaged, Footer, NotParquet, OutputError, open_data_file, read_footer
from pipeline.messages.examples import Examples
from pipeline.storage.map_ahead import map_ahead
from pipeline.storage.objects.base import Entry, ObjectFolder, is_of_content
from pipeline.storage.uris import Uri, hide_secrets
from pipeline.storage.whole_file import temporary_names

DATA_FOLDER = "data"

_DATA_NAME = re.compile(r"part-[0-9a-f]{20}\.parquet")
_TEMPORARY_NAME = temporary_names(r"part-[0-9a-f]{20}\.parquet")

Item = TypeVar("Item")
Result = TypeVar("Result")


class DataFolder:
    """The data files of an output, of which each footer is read once: for checking, counting and so on.

    Args:
        uri: of the output folder, which holds the folder of data files.
        concurrency: footers to read at a time.
    """

    def __init__(self, uri: Uri, concurrency: int) -> None:
        self._uri = uri
        self._concurrency = concurrency
        self._footers: dict[Entry, Footer] = {}
        self._kinds: list[Footer] = []

    def list(self, objects: ObjectFolder) -> tuple[list[Entry], list[str]]:
        """Data files, and names of temporary files.

        Raises:
            OutputError: there are files that this pipeline did not write.
        """
        files, folders = objects.list(DATA_FOLDER)
        visible = [entry for entry in files if not entry.name.startswith((".", "_"))]
        foreign = [entry.name for entry in visible if not _DATA_NAME.fullmatch(entry.name)]
        foreign += [f"{name}/" for name in folders if not name.startswith((".", "_"))]
        self._refuse(foreign)
        return visible, [entry.name for entry in files if _TEMPORARY_NAME.fullmatch(entry.name)]

    def _refuse(self, foreign: Sequence[str]) -> None:
        if foreign:
            raise OutputError(
                f"{self._uri}/{DATA_FOLDER} holds files that this pipeline did not write: "
                f"{Examples.of(foreign)}. Move them away, or choose another output."
            )

    def footer_or_none(self, objects: ObjectFolder, entry: Entry) -> Footer | None:
        """``None`` for a file that is cut off.

        Raises:
            OutputError: it is Parquet, but this pipeline did not write it; or it is damaged.
        """
        if entry not in self._footers:
            try:
                with self._named(entry):
                    footer = read_footer(objects, f"{DATA_FOLDER}/{entry.name}", entry)
            except NotParquet:
                return None
            if footer is None:
                self._refuse([entry.name])
                return None
            if not entry.version:
                return footer
            self._footers[entry] = self._lean(footer)
        return self._footers[entry]

    def _lean(self, footer: Footer) -> Footer:
        """The same, sharing what nearly all files have in common: a footer of its own takes 10 kB."""
        for kind in self._kinds:
            if footer.identity == kind.identity and footer.schema.equals(kind.schema):
                return replace(footer, identity=kind.identity, schema=kind.schema)
        self._kinds.append(footer)
        return footer

    def footers(self, objects: ObjectFolder) -> Iterator[tuple[Entry, Footer]]:
        """All data files with their footers.

        Raises:
            OutputError: see `list`; or a file is cut off.
        """
        entries, _ = self.list(objects)
        footers = map_files(lambda entry: self.footer_or_none(objects, entry), entries, self._concurrency)
        for entry, footer in zip(entries, footers, strict=True):
            if footer is None:
                raise OutputError(self._cut_off(entry))
            yield entry, footer

    def current(self, objects: ObjectFolder) -> dict[Entry, Footer]:
        """The files that count, with their footers. A run that died while it replaced a file has left both.

        Raises:
            OutputError: see `footers`; or the files disagree.
        """
        footers = dict(self.footers(objects))
        self._agreed(footers.items())
        replaced = {footer.replaces for footer in footers.values()}
        return {entry: footer for entry, footer in footers.items() if entry.name not in replaced}

    def common_footer(self, objects: ObjectFolder) -> Footer | None:
        """What all files agree in, as the footer of one of them; ``None`` if there is no file.

        Raises:
            OutputError: see `footers`; or the files disagree.
        """
        return self._agreed(self.footers(objects))

    def _agreed(self, footers: Iterable[tuple[Entry, Footer]]) -> Footer | None:
        first: tuple[Entry, Footer] | None = None
        odd: list[str] = []
        for entry, footer in footers:
            if first is None:
                first = entry, footer
            elif _key(footer) != _key(first[1]):
                odd.append(entry.name)
        if first is None:
            return None
        if odd:
            raise OutputError(
                f"the files in {self._uri}/{DATA_FOLDER} were made with different weights, settings or "
                f"schemas: {Examples.of(odd)} and {first[0].name} do not belong together"
            )
        return first[1]

    @contextmanager
    def open(self, objects: ObjectFolder, entry: Entry) -> Iterator[pq.ParquetFile]:
        """A file for reading. All that is read of data files is read through this, in the block.

        Raises:
            OutputError: the file is damaged, here or when its rows are read.
            OSError: the storage does not give it.
        """
        with self._named(entry):
            try:
                with open_data_file(objects, f"{DATA_FOLDER}/{entry.name}", entry) as file:
                    yield file
            except NotParquet:
                raise OutputError(self._cut_off(entry)) from None

    def read(self, objects: ObjectFolder, entry: Entry, columns: Sequence[str] | None) -> pa.Table:
        """Columns of a file, or all of them, without the footer's metadata.

        Raises:
            OutputError, OSError: see `open`.
        """
        with self.open(objects, entry) as file:
            table = file.read(None if columns is None else list(columns), use_threads=False)
        return table.replace_schema_metadata(None)

    @contextmanager
    def _named(self, entry: Entry) -> Iterator[None]:
        """What is wrong with a file, with its name and what to do."""
        place = f"{self._uri}/{DATA_FOLDER}/{entry.name}"
        try:
            yield
        except NotParquet:
            raise
        except (Damaged, pa.ArrowException, OSError) as error:
            if isinstance(error, OSError) and not is_of_content(error):
                raise type(error)(f"{place} cannot be read: {hide_secrets(str(error))}") from None
            reason = hide_secrets(" ".join(str(error).split()))[:300]
            raise OutputError(
                f"{place} is damaged ({reason}). Move it away and run annotate again, which makes its images anew; "
                "nothing else is lost"
            ) from None

    def _cut_off(self, entry: Entry) -> str:
        return f"{self._uri}/{DATA_FOLDER}/{entry.name} is cut off; run again to recover"


def map_files(work: Callable[[Item], Result], items: Sequence[Item], concurrency: int) -> Iterator[Result]:
    """Results in order; at most twice ``concurrency`` of them wait to be taken."""
    return map_ahead(work, items, max(1, min(concurrency, len(items))), 2 * concurrency)


def _key(footer: Footer) -> tuple[Any, ...]:
    return footer.schema_version, footer.identity.weights_sha256, footer.identity.config_digest, footer.schema
