"""Sorted runs on scratch storage and their merge, against one sort of everything."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.metrics.ap import sorted_runs as module
from pipeline.metrics.ap.records import RECORD, sort_order
from pipeline.metrics.ap.sorted_runs import merge_runs, write_runs
from pipeline.storage.objects.base import ObjectFolder
from pipeline.storage.objects.open import open_objects
from pipeline.storage.uris import Uri


def some_records(rng: np.random.Generator, count: int, first_image: int) -> np.ndarray:
    """Few different scores, so that images and ranks decide; no two records are equal in all three."""
    records = np.zeros(count, RECORD)
    records["score"] = rng.choice([0.1, 0.25, 0.5, 0.5000000000000001, 1.0], count)
    records["image"] = first_image + np.arange(count) // 7
    records["rank"] = np.arange(count) % 7
    records["tp"] = rng.integers(0, 1 << 10, (count, 4))
    return records


@pytest.fixture
def objects(tmp_path: Path) -> ObjectFolder:
    return open_objects(Uri(str(tmp_path)), 10.0)


@settings(deadline=None, max_examples=50)
@given(
    seed=st.integers(0, 10**6),
    sizes=st.lists(st.integers(0, 60), min_size=1, max_size=6),
    chunk=st.integers(1, 20),
    at_once=st.integers(1, 20),
)
def test_merged_runs_are_one_sorted_sequence(
    tmp_path_factory: pytest.TempPathFactory, seed: int, sizes: list[int], chunk: int, at_once: int
) -> None:
    rng = np.random.default_rng(seed)
    objects = open_objects(Uri(str(tmp_path_factory.mktemp("runs"))), 10.0)
    parts = [some_records(rng, size, 1000 * i) for i, size in enumerate(sizes)]
    categories = [rng.integers(0, 3, size) for size in sizes]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK_RECORDS", chunk)
        patch.setattr(module, "CHUNKS_AT_ONCE", at_once)
        written = [write_runs(objects, f"{i}.runs", categories[i], part) for i, part in enumerate(parts)]
        records, owners = np.concatenate(parts), np.concatenate(categories)
        for category in range(3):
            mine = [run[category] for run in written if category in run]
            pieces = list(merge_runs(objects, mine, RECORD))
            wanted = records[owners == category]
            assert np.array_equal(np.concatenate([np.empty(0, RECORD), *pieces]), wanted[sort_order(wanted)])


@pytest.mark.parametrize(("at_once", "largest", "num_reads"), [(1, 50, 250), (20, 200, 65)])
def test_a_piece_holds_no_more_than_a_read_of_each_run(
    objects: ObjectFolder, monkeypatch: pytest.MonkeyPatch, at_once: int, largest: int, num_reads: int
) -> None:
    monkeypatch.setattr(module, "CHUNK_RECORDS", 10)
    monkeypatch.setattr(module, "CHUNKS_AT_ONCE", at_once)
    rng = np.random.default_rng(0)
    runs = [write_runs(objects, f"{i}", np.zeros(500, np.int64), some_records(rng, 500, 1000 * i))[0] for i in range(5)]
    reads, read_range = [], type(objects).read_range

    def counted(self: ObjectFolder, name: str, start: int, stop: int) -> bytes:
        reads.append(name)
        return read_range(self, name, start, stop)

    monkeypatch.setattr(type(objects), "read_range", counted)
    sizes = [len(piece) for piece in merge_runs(objects, runs, RECORD)]
    assert sum(sizes) == 2500
    assert max(sizes) <= largest
    assert len(reads) == num_reads


def test_nothing_is_written_for_no_records(objects: ObjectFolder) -> None:
    assert write_runs(objects, "empty.runs", np.zeros(0, np.int64), np.empty(0, RECORD)) == {}
    assert objects.list("").files == []
    assert list(merge_runs(objects, [], RECORD)) == []
