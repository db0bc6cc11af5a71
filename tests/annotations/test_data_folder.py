"""The footers of an output's files are read once, and kept small."""

from __future__ import annotations

import time
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.annotations.data_file import Footer, data_file_name, read_footer
from pipeline.annotations.data_folder import DataFolder
from pipeline.annotations.ledger import OutputStore
from pipeline.storage.objects.base import Entry, Listing, ReadFailed
from pipeline.storage.objects.local import LocalObjects
from pipeline.storage.objects.open import open_objects
from pipeline.storage.uris import Uri
from testing.store_requests import counted_requests
from tests.annotations.output_cases import IDENTITY, output_table

NUM_FILES = 40


@pytest.fixture
def store(tmp_path: Path) -> OutputStore:
    """Two images a file, by two runs."""
    store = OutputStore(Uri(str(tmp_path / "out")))
    for i in range(NUM_FILES):
        store.write_rows(output_table([f"{i:03d}", f"{i:03d} too"]), replace(IDENTITY, run_id=f"run-{i % 2}"))
    return store


def test_a_file_is_read_once_for_its_footer_and_once_for_rows(store: OutputStore) -> None:
    with counted_requests() as requests:
        files = store.files()
        assert store.files().footers == files.footers
        rows = [table.to_pylist() for table in store.iter_ids(files.settled)]
    assert {number for (kind, name), number in requests.items() if kind == "GET"} == {2}
    assert rows == [table.to_pylist() for table in OutputStore(store.uri).iter_ids(files.settled)]
    assert sorted(row["image_id"] for table in rows for row in table)[:3] == ["000", "000 too", "001"]


def test_a_file_that_changed_is_read_anew(store: OutputStore) -> None:
    (entry, footer), *_ = store.files().footers.items()
    path = Path(str(store.uri)) / "data" / entry.name
    ids = next(store.iter_ids([entry]))["image_id"].to_pylist()
    path.unlink()
    store.write_rows(output_table(ids, failed=ids[:1]), footer.identity)
    (again, changed), *_ = store.files().footers.items()
    assert (again.name, footer.counts.failed, changed.counts.failed) == (entry.name, 0, 1)
    assert next(store.iter_ids([again], ("status",)))["status"].to_pylist() == ["failed", "annotated"]


def test_what_is_kept_is_small(store: OutputStore) -> None:
    """Of 50,000 files 200 MB. A footer alone is 7 kB, and what was parsed of one 20 kB."""
    objects, folder = open_objects(store.uri), store.folder
    entries, _ = folder.list(objects)
    for entry in entries[:4]:
        folder.footer_or_none(objects, entry)
    tracemalloc.start()
    try:
        for entry in entries[4:]:
            folder.footer_or_none(objects, entry)
        kept_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept_bytes / (NUM_FILES - 4) < 3000
    for entry in entries:
        assert folder._contents.get(entry) == read_footer(objects, f"data/{entry.name}", entry)


def test_a_look_at_many_files_takes_no_square_of_time(
    store: OutputStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    footer = next(iter(store.files().footers.values()))
    many = [Entry(f"part-{i:020x}.parquet", 1, "1") for i in range(20_000)]
    monkeypatch.setattr(LocalObjects, "list", lambda *_: Listing(many, []))

    def known(*_: object) -> Footer:
        return footer

    monkeypatch.setattr(DataFolder, "footer_or_none", known)
    before = time.process_time()
    survey = DataFolder(store.uri, 4).survey(open_objects(store.uri))
    assert (len(survey.footers), survey.foreign) == (20_000, ())
    assert time.process_time() - before < 8  # 1 s on a machine that does nothing else; 30 s with the square


@pytest.mark.parametrize("look", ["survey", "current"])
def test_a_listing_that_shows_neither_the_new_file_nor_the_old_ones(
    store: OutputStore, monkeypatch: pytest.MonkeyPatch, look: str
) -> None:
    """A listing has come past the name of the new file when that is written, and not to those that are removed then."""
    before = list(store.files().footers)
    last = before[NUM_FILES // 2 :]
    tables = list(store.iter_ids(last, None))
    orders = (pa.concat_tables([*tables[n:], *tables[:n]]) for n in range(len(tables)))
    rows = next(rows for rows in orders if data_file_name(rows["image_id"]) < last[0].name)
    listed = LocalObjects.list
    torn = []

    def list_in_two_steps(objects: LocalObjects, folder: str) -> Listing:
        if torn:
            return listed(objects, folder)
        torn.append(folder)
        store.replace(dict.fromkeys(last, 0), rows, IDENTITY, lambda: None)
        return Listing([entry for entry in before if entry not in last], [])

    monkeypatch.setattr(LocalObjects, "list", list_in_two_steps)
    found = getattr(DataFolder(store.uri, 4), look)(open_objects(store.uri))
    footers = found.footers if look == "survey" else found
    assert torn
    assert sum(footer.counts.rows for footer in footers.values()) == 2 * NUM_FILES
    assert len(footers) == NUM_FILES - len(last) + 1


def test_a_file_that_was_replaced_since_is_no_damage(store: OutputStore) -> None:
    folder, objects = DataFolder(store.uri, 4), open_objects(store.uri)
    entry = next(iter(folder.current(objects)))
    store.replace({entry: 2}, output_table([1]).slice(1), IDENTITY, lambda: None)
    with pytest.raises(ReadFailed, match=f"{entry.name} is gone: it was replaced after the output was listed; try"):
        folder.read(objects, entry, None)


def test_a_file_that_is_gone_for_good_does_not_count(store: OutputStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rows failed, were removed, and are made anew while somebody looks."""
    listed, num_looks = LocalObjects.list, 0

    def list_files(objects: LocalObjects, folder: str) -> Listing:
        nonlocal num_looks
        num_looks += 1
        if num_looks == 2:
            entry = next(iter(OutputStore(store.uri).folder.footers(open_objects(store.uri))))
            rows = next(store.iter_ids([entry], None))
            store.replace({entry: rows.num_rows}, rows.slice(0, 0), IDENTITY, lambda: None)
            store.write_rows(rows.take([1, 0]), IDENTITY)
        return listed(objects, folder)

    monkeypatch.setattr(LocalObjects, "list", list_files)
    footers = DataFolder(store.uri, 4).current(open_objects(store.uri))
    assert sum(footer.counts.rows for footer in footers.values()) == 2 * NUM_FILES
