"""Rows to one file of the output."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.annotate.stages.stage import StageCounts
from pipeline.annotate.stages.write import Write
from pipeline.annotations.data_file import Identity
from pipeline.annotations.ledger import DataFile, OutputStore
from pipeline.storage.uris import Uri
from tests.annotate.stages.test_encode import encode, segmented_rows, some

IDENTITY = Identity("model", "0" * 64, "digest", "{}", "code", "run")


def rows() -> pa.Table:
    return encode(segmented_rows([some(2), some(0), some(1, seed=3)]))


def test_all_rows_become_one_file(tmp_path: Path) -> None:
    reports: list[StageCounts] = []
    store = OutputStore(Uri(str(tmp_path)))
    written = Write(store, IDENTITY, 3, lambda: None, reports.append)(rows())
    (path,) = (tmp_path / "data").iterdir()
    assert written == DataFile(path.name, 3, path.stat().st_size)
    assert store.files().counts.annotated == 3
    (counts,) = reports
    assert counts == StageCounts(write_s=counts.write_s, written=3, files=1)
    assert counts.write_s > 0


def test_nothing_is_written_behind_the_fence(tmp_path: Path) -> None:
    def lost() -> None:
        raise RuntimeError("the lock is lost")

    reports: list[StageCounts] = []
    with pytest.raises(RuntimeError, match="the lock is lost"):
        Write(OutputStore(Uri(str(tmp_path))), IDENTITY, 3, lost, reports.append)(rows())
    assert list(tmp_path.rglob("*.parquet")) == []
    assert reports == []
