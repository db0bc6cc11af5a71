"""Rows to one file of the output."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.annotate.stages.stage import StageCounts
from pipeline.annotate.stages.write import FileWriter, Write
from pipeline.annotations.data_file import Identity
from pipeline.annotations.ledger import DataFile, OutputStore
from pipeline.annotations.schema import made_by
from pipeline.storage.uris import Uri
from pipeline.tables.packed import packed
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


def test_blocks_are_encoded_one_after_the_other_into_one_file(tmp_path: Path) -> None:
    store = OutputStore(Uri(str(tmp_path)))
    whole = segmented_rows([some(2), some(0), some(1, seed=3)])
    sizes: list[int] = []

    def encode_block(block: pa.Table) -> pa.Table:
        sizes.append(len(block))
        return encode(block)

    writer = FileWriter(encode_block, Write(store, IDENTITY, 3, lambda: None, lambda _: None))
    file = writer.write(packed(whole.slice(0, 2)), packed(whole.slice(2)))
    assert sizes == [2, 1]
    assert pq.read_table(tmp_path / "data" / file.name).to_pylist() == made_by(rows(), "run").to_pylist()


def test_a_writer_starts_without_torch_and_ray() -> None:
    """Its process starts anew when files come seldom, and torch would make that four times as dear."""
    code = (
        "import sys\n"
        "from pipeline.annotate.stages import encode, ordering, write\n"
        "print(sorted({'torch', 'ray', 'pandas'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"
