"""What every format has, whatever it writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.export.errors import ExportError
from pipeline.export.formats.base import NO_OPTIONS, FileFormat, FolderFormat, Format
from pipeline.export.formats.table import FORMATS
from pipeline.storage.uris import Uri
from tests.export.export_cases import MASKS, Picture, labels_of, write_output

FILE = FileFormat(name="one", about="a file", write=lambda labels, file, options: [f"{file.write(b'x')} byte"])
FOLDER = FolderFormat(
    name="many", about="a folder", is_lossy=True, write=lambda labels, folder, options: ["nothing in it"]
)


def test_a_file_and_its_remarks(tmp_path: Path) -> None:
    labels = labels_of(write_output(tmp_path / "annotations", [Picture(1, [MASKS["full"]])]))
    out = tmp_path / "out"
    assert FILE.write_whole(labels, Uri(str(out)), False, NO_OPTIONS) == ["1 byte"]
    assert out.read_bytes() == b"x"
    with pytest.raises(ExportError, match="--overwrite"):
        FILE.write_whole(labels, Uri(str(out)), False, NO_OPTIONS)


def test_a_folder_and_its_remarks(tmp_path: Path) -> None:
    labels = labels_of(write_output(tmp_path / "annotations", [Picture(1, [MASKS["full"]])]))
    assert FOLDER.write_whole(labels, Uri(str(tmp_path / "out")), False, NO_OPTIONS) == ["nothing in it"]
    record = json.loads((tmp_path / "out" / "export.json").read_text())
    assert (record["state"], record["format"], record["remarks"]) == ("finished", "many", ["nothing in it"])


@pytest.mark.parametrize(
    ("format", "line"),
    [
        (FILE, "one           a file. Exact. OUT is a file."),
        (FOLDER, "many          a folder. Lossy: the summary says how much. OUT is a folder."),
        (FORMATS["coco-results"], "coco-results  COCO results, for pycocotools' loadRes. Exact, every detection. "),
    ],
)
def test_help(format: Format, line: str) -> None:
    assert format.help_line().startswith(line)
