"""Single rows of an output, out of however many: only the files, columns and rows that are asked for are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.annotations.data_file import OutputError
from pipeline.annotations.data_folder import DataFolder, map_files
from pipeline.annotations.schema import ANNOTATED, there
from pipeline.messages.examples import Examples
from pipeline.storage.objects.base import Entry
from pipeline.storage.objects.open import open_objects
from pipeline.storage.uris import Uri, UriText

Row = dict[str, Any]
Item = TypeVar("Item")
Result = TypeVar("Result")

COLUMNS = ("image_id", "image_uri", "height", "width", "status", "detections", "error_code", "error_message")
_ROWS_PER_BATCH = 64
_CONCURRENCY = 32


class OutputRows:
    """Rows of an output folder, as dicts of `COLUMNS`.

    Args:
        uri: of the output folder.

    Raises:
        OutputError: there are no data files, files of other origin, or files that do not belong together. All
            methods raise it for a file that is damaged.
    """

    def __init__(self, uri: Uri) -> None:
        self._uri = uri
        self._objects = open_objects(uri)
        self._folder = DataFolder(uri, _CONCURRENCY)
        footers = self._folder.current(self._objects)
        if not footers:
            raise OutputError(f"{uri} has no data files: is it the output of an annotate job?")
        self._files = list(footers)
        self._id_type: pa.DataType = next(iter(footers.values())).schema.field("image_id").type

    def by_id(self, ids: Sequence[str]) -> list[Row]:
        """The rows with these ids, in this order, each once; one whose picture is gone is not held.

        Raises:
            OutputError: an id that the output does not hold, or that cannot be one.
        """
        wanted = self._typed(ids)
        values = pa.array(list(wanted), self._id_type)
        # First no more than says which these are: the detections of files without a wanted row are not read.
        listed = map(there, self._read(self._files, ["image_id", "status"]))
        held = [
            (entry, found)
            for entry, rows in zip(self._files, listed, strict=True)
            if (found := rows["image_id"].filter(pc.is_in(rows["image_id"], values)).to_pylist())
        ]
        known = {value for _, found in held for value in found}
        if missing := [text for value, text in wanted.items() if value not in known]:
            raise OutputError(f"{self._uri} has no image {Examples.of(missing)}")
        by_id: dict[int | str, Row] = {}
        for rows in self._read([entry for entry, _ in held], COLUMNS):
            chosen = rows.filter(pc.is_in(rows["image_id"], values)).to_pylist()
            by_id.update((row["image_id"], row) for row in chosen)
        return [by_id[value] for value in wanted]

    def image_uris(self, ids: Sequence[int | str]) -> dict[int | str, UriText]:
        """Where images came from; those that are not in the output, or came as bytes, are left out."""
        values = pa.array(list(ids), self._id_type)
        uris: dict[int | str, UriText] = {}
        for rows in self._read(self._files, ["image_id", "image_uri"]):
            found = rows.filter(pc.and_(pc.is_in(rows["image_id"], values), pc.is_valid(rows["image_uri"])))
            uris.update(zip(found["image_id"].to_pylist(), map(UriText, found["image_uri"].to_pylist()), strict=True))
        return uris

    def annotated(self) -> Iterator[Row]:
        """All annotated rows in the order of the files, a few at a time in memory."""
        for entry in self._files:
            with self._folder.open(self._objects, entry) as file:
                for batch in file.iter_batches(_ROWS_PER_BATCH, COLUMNS):
                    yield from batch.filter(pc.equal(batch["status"], ANNOTATED)).to_pylist()

    def _read(self, files: Sequence[Entry], columns: Sequence[str]) -> Iterator[pa.Table]:
        return map_files(lambda entry: self._folder.read(self._objects, entry, columns), files, _CONCURRENCY)

    def _typed(self, ids: Sequence[str]) -> dict[str | int, str]:
        """Ids as the output has them, and as they were given."""
        if not pa.types.is_integer(self._id_type):
            return {text: text for text in ids}
        try:
            return {int(text): text for text in ids}
        except ValueError as error:
            raise OutputError(f"the ids in {self._uri} are integers: {error}") from None


def first_rows(
    folder: DataFolder,
    files: Sequence[Entry],
    columns: Sequence[str],
    work: Callable[[pa.Table], Result],
    concurrency: int,
) -> Iterator[Result]:
    """What ``work`` makes of the first row group of some files.

    Args:
        folder: they are in.
        files: to read.
        columns: to read.
        work: is called in threads.
        concurrency: files in memory.

    Raises:
        OutputError: a file is damaged, or not ours.
    """
    objects = open_objects(folder.uri)

    def read(entry: Entry) -> Result:
        with folder.open(objects, entry) as file:
            return work(file.read_row_group(0, columns))

    return map_files(read, files, concurrency)


def evenly(items: Sequence[Item], most: int) -> list[Item]:
    """At most so many of them, at even distances, in their order."""
    count = min(most, len(items))
    return [items[(2 * i + 1) * len(items) // (2 * count)] for i in range(count)]
