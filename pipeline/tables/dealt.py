"""Rows dealt into parts on disk, so that each part is in memory on its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.tables.arrays import Int64s


class DealtRows:
    """Files of rows, one a part, in the Arrow IPC stream format: filled in a ``with`` block, and read after it.

    Args:
        folder: for the files; whoever gives it removes it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writers: dict[int, Any] = {}

    def __enter__(self) -> DealtRows:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for writer in self._writers.values():
            writer.close()

    def add(self, rows: pa.Table, parts: Int64s) -> None:
        """Deal N rows.

        Args:
            parts: [N] the part that each goes to.
        """
        for part in np.unique(parts).tolist():
            some = rows.take(pa.array(np.flatnonzero(parts == part)))
            if part not in self._writers:
                self._writers[part] = pa.ipc.new_stream(self._path(part), some.schema)
            self._writers[part].write_table(some)

    def batches(self, part: int) -> Iterator[pa.Table]:
        """A part as it was dealt, in that order; nothing if it has no row."""
        if part in self._writers:
            with pa.memory_map(self._path(part)) as source, pa.ipc.open_stream(source) as reader:
                for batch in reader:
                    yield pa.Table.from_batches([batch])

    def read(self, part: int) -> pa.Table | None:
        """All of a part; ``None`` if it has no row."""
        tables = list(self.batches(part))
        return pa.concat_tables(tables) if tables else None

    def _path(self, part: int) -> str:
        return str(self._folder / f"{part}.arrow")
