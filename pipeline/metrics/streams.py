"""The streams of records: of each kind of IoU for AP, and of the errors. A stream is sorted once and read once."""

from __future__ import annotations

import numpy as np

from pipeline.metrics.analysis.tide import VARIANT_RECORD
from pipeline.metrics.ap.records import RECORD, BlockRecords
from pipeline.metrics.ap.sorted_runs import SortedRun, write_runs
from pipeline.storage.objects.base import ObjectFolder
from pipeline.tables.arrays import Int64s

ERRORS_STREAM = "errors"


def stream_dtype(stream: str) -> np.dtype[np.void]:
    """Of the records of a stream: what was compared, or `ERRORS_STREAM`."""
    return VARIANT_RECORD if stream == ERRORS_STREAM else RECORD


class RecordStream:
    """The records of a stream, first in memory and then on scratch storage, and how many objects count.

    Attributes:
        num_objects: [K, A] or [K, V].
        runs: [K] where the sorted records of each category lie: a run for each group that has some.
    """

    def __init__(self, stream: str, num_categories: int) -> None:
        num_ranges = stream_dtype(stream)["tp"].shape[0]
        self.num_objects: Int64s = np.zeros((num_categories, num_ranges), np.int64)
        self.runs: list[list[SortedRun]] = [[] for _ in range(num_categories)]
        self._blocks: list[BlockRecords] = []

    def update(self, block: BlockRecords) -> None:
        """Take in the records of a block."""
        self.num_objects += block.num_objects
        self._blocks.append(block)

    def write(self, objects: ObjectFolder, name: str) -> None:
        """Sort what is in memory, and let it go.

        Args:
            objects: the scratch folder that the file goes to.
            name: of the file; written again if the task is.
        """
        if self._blocks:
            categories = np.concatenate([block.categories for block in self._blocks])
            records = np.concatenate([block.records for block in self._blocks])
            for category, run in write_runs(objects, name, categories, records).items():
                self.runs[category].append(run)
        self._blocks = []

    def merge(self, other: RecordStream) -> None:
        """Take in what another has written."""
        self.num_objects += other.num_objects
        for own, others in zip(self.runs, other.runs, strict=True):
            own.extend(others)
