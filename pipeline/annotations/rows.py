"""Single rows of an output, out of however many: only the files, columns and rows that are asked for are read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from pipeline.annotations.data_file import OutputError
from pipeline.annotations.data_folder import DATA_FOLDER, DataFolder
from pipeline.annotations.schema import ANNOTATED
from pipeline.messages.examples import Examples
from pipeline.storage.filesystems import open_filesystem
from pipeline.storage.objects.open import open_objects
from pipeline.storage.uris import Uri, UriText

Row = dict[str, Any]

COLUMNS = ("image_id", "image_uri", "height", "width", "status", "detections", "error_code", "error_message")
_ROWS_PER_BATCH = 64
_CONCURRENCY = 32


class OutputRows:
    """Rows of an output folder, as dicts of `COLUMNS`.

    Args:
        uri: of the output folder.

    Raises:
        OutputError: there are no data files, files of other origin, or files that do not belong together.
    """

    def __init__(self, uri: Uri) -> None:
        self._uri = uri
        self._filesystem, path = open_filesystem(uri)
        files = DataFolder(uri, _CONCURRENCY).current(open_objects(uri))
        if not files:
            raise OutputError(f"{uri} has no data files: is it the output of an annotate job?")
        self._data = self._open([f"{path}/{DATA_FOLDER}/{entry.name}" for entry in files])

    def by_id(self, ids: Sequence[str]) -> list[Row]:
        """The rows with these ids, in this order, each once.

        Raises:
            OutputError: an id that the output does not hold, or that cannot be one.
        """
        wanted = self._typed(ids)
        found = pc.field("image_id").isin(pa.array(list(wanted), self._id_type))
        # First the column of ids alone: the detections of files without a wanted row are not read.
        where = self._data.to_table(columns=["image_id", "__filename"], filter=found)
        held = set(where["image_id"].to_pylist())
        if missing := [text for value, text in wanted.items() if value not in held]:
            raise OutputError(f"{self._uri} has no image {Examples.of(missing)}")
        files = sorted(set(where["__filename"].to_pylist()))
        rows = self._open(files).to_table(columns=list(COLUMNS), filter=found).to_pylist()
        by_id = {row["image_id"]: row for row in rows}
        return [by_id[value] for value in wanted]

    def image_uris(self, ids: Sequence[int | str]) -> dict[int | str, UriText]:
        """Where images came from; those that are not in the output, or came as bytes, are left out."""
        found = pc.field("image_id").isin(pa.array(list(ids), self._id_type)) & pc.field("image_uri").is_valid()
        table = self._data.to_table(columns=["image_id", "image_uri"], filter=found)
        return dict(zip(table["image_id"].to_pylist(), map(UriText, table["image_uri"].to_pylist()), strict=True))

    def annotated(self) -> Iterator[Row]:
        """All annotated rows in the order of the files, a few at a time in memory."""
        batches = self._data.to_batches(
            columns=list(COLUMNS),
            filter=pc.field("status") == ANNOTATED,
            batch_size=_ROWS_PER_BATCH,
            batch_readahead=1,
            fragment_readahead=1,
            use_threads=False,
        )
        for batch in batches:
            yield from batch.to_pylist()

    @property
    def _id_type(self) -> pa.DataType:
        return self._data.schema.field("image_id").type

    def _typed(self, ids: Sequence[str]) -> dict[str | int, str]:
        """Ids as the output has them, and as they were given."""
        if not pa.types.is_integer(self._id_type):
            return {text: text for text in ids}
        try:
            return {int(text): text for text in ids}
        except ValueError as error:
            raise OutputError(f"the ids in {self._uri} are integers: {error}") from None

    def _open(self, files: list[str]) -> ds.FileSystemDataset:
        return ds.dataset(files, filesystem=self._filesystem, format="parquet")
