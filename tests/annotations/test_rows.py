from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline.annotations.data_file import OutputError, data_file_name, encode_data_file
from pipeline.annotations.data_folder import DataFolder
from pipeline.annotations.rows import OutputRows
from pipeline.storage.objects.base import Entry, ObjectFolder
from pipeline.storage.uris import Uri, UriText
from tests.drawing.drawn_cases import IDENTITY, write_output


@pytest.fixture
def output(tmp_path: Path) -> Path:
    write_output(tmp_path, [5, 1, 9], ["a", "b", "c"], failed=[9])
    write_output(tmp_path, [4, 2], ["d", "e"])
    return tmp_path


class TestById:
    def test_in_the_order_asked_for_and_once(self, output: Path) -> None:
        rows = OutputRows(Uri(str(output))).by_id(["2", "9", "5", "2"])
        assert [(row["image_id"], row["image_uri"], row["status"]) for row in rows] == [
            (2, "e", "annotated"),
            (9, "c", "failed"),
            (5, "a", "annotated"),
        ]

    def test_text_ids(self, tmp_path: Path) -> None:
        write_output(tmp_path, ["x/1.jpg", "2"], ["a", "b"])
        assert [row["image_uri"] for row in OutputRows(Uri(str(tmp_path))).by_id(["2", "x/1.jpg"])] == ["b", "a"]

    @pytest.mark.parametrize(
        ("ids", "message"),
        [
            (["5", "77", "78"], "has no image 77, 78$"),
            ([str(i) for i in range(20, 50)], "no image 20, .*24 and 25 more"),
            (["five"], "are integers.*'five'"),
        ],
    )
    def test_unknown_ids(self, output: Path, ids: list[str], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            OutputRows(Uri(str(output))).by_id(ids)

    def test_files_without_the_row_are_not_opened_for_detections(
        self, output: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rows = OutputRows(Uri(str(output)))
        read: list[tuple[str, ...]] = []
        of_folder = DataFolder.read

        def spy(folder: DataFolder, objects: ObjectFolder, entry: Entry, columns: Sequence[str]) -> Any:
            read.append(tuple(columns))
            return of_folder(folder, objects, entry, columns)

        monkeypatch.setattr(DataFolder, "read", spy)
        rows.by_id(["2"])
        assert sorted(columns == ("image_id", "status") for columns in read) == [False, True, True]


def test_annotated_leaves_out_what_failed(output: Path) -> None:
    assert sorted(row["image_id"] for row in OutputRows(Uri(str(output))).annotated()) == [1, 2, 4, 5]


@pytest.mark.parametrize("make", [False, True])
def test_no_output(tmp_path: Path, make: bool) -> None:
    if make:
        (tmp_path / "data").mkdir()
    with pytest.raises(ValueError, match="no data files"):
        OutputRows(Uri(str(tmp_path)))


def test_file_that_is_cut_off(output: Path) -> None:
    for file in (output / "data").iterdir():
        file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(OutputError, match="cut off"):
        OutputRows(Uri(str(output)))


def test_image_uris(output: Path) -> None:
    assert OutputRows(Uri(str(output))).image_uris([4, 5, 77]) == {5: UriText("a"), 4: UriText("d")}


def test_a_replaced_file_does_not_count(output: Path) -> None:
    """A run that died while it replaced a file has left both."""
    old = min((output / "data").iterdir())
    table = pq.ParquetFile(old).read().slice(1)
    content = encode_data_file(table.replace_schema_metadata(None), IDENTITY, 3, {old.name: 1})
    (output / "data" / data_file_name(table["image_id"])).write_bytes(content)
    kept = set(range(10)) - {pq.ParquetFile(old).read()["image_id"][0].as_py()}
    ids = [row["image_id"] for row in OutputRows(Uri(str(output))).annotated()]
    assert len(ids) == len(set(ids))
    assert set(ids) <= kept
