"""The Parquet copy of a manifest that is not Parquet, which many processes can read at once.

Each reader (CSV, JSON, folder) passes once over its source and writes ``image_uri`` as it stands there,
``image_id`` where the source has one, and the carried columns, to Parquet files in the scratch folder. Memory is
bounded by a row group, with two exceptions: COCO JSON is parsed whole, and file systems other than local and S3
list a folder at once.
"""

from __future__ import annotations

from types import TracebackType

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.annotate.manifest.rules import ReadUnit
from pipeline.storage.filesystems import open_filesystem
from pipeline.storage.uris import Uri

ROW_GROUP_ROWS = 50_000
ROW_GROUPS_PER_FILE = 20  # whoever reads one row group reads the file's whole footer


class UnitWriter:
    """Tables of any length -> Parquet files of even row groups; a context manager.

    A table whose schema differs from the one before starts a file of its own.
    """

    def __init__(self, scratch_uri: Uri) -> None:
        self._uri = scratch_uri
        self._filesystem, self._path = open_filesystem(scratch_uri)
        self._writer: pq.ParquetWriter | None = None
        self._waiting: list[pa.Table] = []
        self._num_waiting = 0
        self._num_files = 0
        self._row_group = 0
        self._units: list[ReadUnit] = []

    @property
    def units(self) -> tuple[ReadUnit, ...]:
        """All row groups; after the context has ended."""
        return tuple(self._units)

    def __enter__(self) -> UnitWriter:
        if self._uri.scheme != "s3":  # which has no directories, only objects named like them
            self._filesystem.create_dir(self._path, recursive=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.flush()
        self._close()

    def write(self, table: pa.Table) -> None:
        """Append rows; they reach the file by and by."""
        if self._waiting and self._waiting[0].schema != table.schema:
            self.flush()
        self._waiting.append(table)
        self._num_waiting += table.num_rows
        while self._num_waiting >= ROW_GROUP_ROWS:
            waiting = pa.concat_tables(self._waiting)
            self._write_row_group(waiting.slice(0, ROW_GROUP_ROWS))
            self._waiting = [waiting.slice(ROW_GROUP_ROWS)]
            self._num_waiting -= ROW_GROUP_ROWS

    def flush(self) -> None:
        """End the row group here: what waits is large."""
        if self._num_waiting:
            self._write_row_group(pa.concat_tables(self._waiting))
        self._waiting, self._num_waiting = [], 0

    def _write_row_group(self, table: pa.Table) -> None:
        if self._writer is None or self._row_group == ROW_GROUPS_PER_FILE or self._writer.schema != table.schema:
            self._close()
            path = f"{self._path}/{self._name()}"
            self._writer = pq.ParquetWriter(path, table.schema, filesystem=self._filesystem, compression="zstd")
        self._writer.write_table(table, row_group_size=ROW_GROUP_ROWS)
        self._units.append(ReadUnit(self._uri / self._name(), self._row_group, table.num_rows))
        self._row_group += 1

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
            self._num_files += 1
            self._row_group = 0

    def _name(self) -> str:
        return f"manifest-{self._num_files:05d}.parquet"
