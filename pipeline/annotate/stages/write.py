"""Rows of the output's schema to one of its files."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa

from pipeline.annotate.stages.stage import Report, Stage, StageCounts
from pipeline.annotations.data_file import Identity
from pipeline.annotations.ledger import DataFile, OutputStore
from pipeline.tables.packed import unpacked


@dataclass(frozen=True)
class Write:
    """The last stage. All rows that it gets become one file, whole or not at all.

    Attributes:
        store: the output that the file goes to.
        identity: for the file's footer.
        compression_level: of zstd, 1 to 22.
        fence: raises where this run may not write any more.
        report: takes what was done.
    """

    store: OutputStore
    identity: Identity
    compression_level: int
    fence: Callable[[], None]
    report: Report

    def __call__(self, rows: pa.Table) -> DataFile:
        """The file."""
        started = time.perf_counter()
        file = self.store.write_rows(rows, self.identity, compression_level=self.compression_level, fence=self.fence)
        self.report(StageCounts(write_s=time.perf_counter() - started, written=file.num_rows, files=1))
        return file


class FileWriter:
    """The last two stages in one: from blocks to a file of them, and the next one, in a process that lives on.

    Args:
        encode: the stage before `write`.
        write: the last stage.
    """

    def __init__(self, encode: Stage, write: Write) -> None:
        self._encode, self._write = encode, write

    def write(self, *blocks: pa.Table) -> DataFile:
        """A file of packed blocks of segmented rows, which are encoded one after the other."""
        return self._write(pa.concat_tables([self._encode(unpacked(block)) for block in blocks]))
