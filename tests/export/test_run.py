"""All formats through one function: what is refused, what is said, and that the same input gives the same bytes."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest

from pipeline.annotations.class_thresholds import Selection
from pipeline.annotations.data_file import OutputError
from pipeline.annotations.run_json import RunState
from pipeline.export.errors import ExportError
from pipeline.export.formats.base import FolderFormat, Options
from pipeline.export.formats.table import FORMATS, takers
from pipeline.export.run import Export, export
from pipeline.storage.uris import Uri, UriText
from tests.export.export_cases import EMPTY, MASKS, Picture, awkward_pictures, jpeg, output_with_files, write_output

FULL = MASKS["full"]


def contents(path: Path) -> dict[str, bytes]:
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


@pytest.mark.parametrize("format", FORMATS)
def test_same_input_same_bytes(tmp_path: Path, format: str) -> None:
    pictures = awkward_pictures()
    uri = write_output(tmp_path / "annotations", pictures[:5], pictures[5:])
    for name in ("one", "two"):
        summary = export(Export(uri, format, Uri(str(tmp_path / name)), Selection(0.2)))
        assert (summary.tally.images, summary.tally.failed_images) == (len(pictures) - 1, 1)
    assert contents(tmp_path / "one") == contents(tmp_path / "two") != {}


@pytest.mark.parametrize("format", FORMATS)
def test_an_old_export_stays_unless_asked_for(tmp_path: Path, format: str) -> None:
    uri = write_output(tmp_path / "annotations", [Picture(1, [FULL])])
    out = str(tmp_path / "out")
    export(Export(uri, format, Uri(out), Selection()))
    before = contents(tmp_path / "out")
    with pytest.raises(ExportError, match="--overwrite"):
        export(Export(uri, format, Uri(out), Selection(1.0)))
    assert contents(tmp_path / "out") == before
    export(Export(uri, format, Uri(out), Selection(1.0), overwrite=True))
    assert contents(tmp_path / "out") != before or format == "coco-results"


@pytest.mark.parametrize("below", ["", "/data/labels.json", "/../annotations/x"])
def test_an_export_into_the_annotations(tmp_path: Path, below: str) -> None:
    uri = write_output(tmp_path / "annotations", [Picture(1, [FULL])])
    with pytest.raises(ExportError, match="lies in the annotations"):
        export(Export(uri, "coco", Uri(f"{uri}{below}"), Selection(), overwrite=True))


@pytest.mark.parametrize("format", ["coco", "yolo-seg"])
@pytest.mark.parametrize("where", ["annotations", "pictures"])
def test_an_export_in_the_place_of_what_it_is_made_of(tmp_path: Path, where: str, format: str) -> None:
    """Annotated into the folder of an earlier export, or the pictures that it copied: --overwrite removes both."""
    old, new = tmp_path / "old", tmp_path / "new"
    root = (old if where == "pictures" else new) / "pictures"
    root.mkdir(parents=True)
    old.mkdir(exist_ok=True)
    (root / "1.jpg").write_bytes(jpeg(4, 5))
    folder = (old if where == "annotations" else new) / "annotations"
    uri = write_output(folder, [Picture(1, [FULL], uri=str(root / "1.jpg"))], image_root=str(root), images={})
    (old / "export.json").write_text('{"state": "finished"}')
    before = contents(tmp_path)
    with pytest.raises(ExportError, match=r"old.* holds the annotat.*: choose another place"):
        export(Export(uri, format, Uri(str(old)), Selection(), overwrite=True))
    assert contents(tmp_path) == before


@pytest.mark.parametrize("format", [name for name, format in FORMATS.items() if isinstance(format, FolderFormat)])
def test_the_record_of_a_folder(tmp_path: Path, format: str) -> None:
    uri = write_output(tmp_path / "annotations", [Picture(1, [FULL, EMPTY]), Picture(2, None)])
    export(Export(uri, format, Uri(str(tmp_path / "out")), Selection(0.1, {"cat": 0.2})))
    record = json.loads((tmp_path / "out" / "export.json").read_text("utf-8"))
    expected = {
        "state": "finished",
        "format": format,
        "images": 1,
        "failed_images": 1,
        "labels": 1,
        "empty_masks": 1,
        "class_thresholds": {"cat": 0.2},
        "weights_sha256": "a" * 64,
    }
    assert record.items() >= expected.items()


ASKED = {
    "images": Options(images="copy"),
    "val_fraction": Options(val_fraction=0.5),
    "image_prefix": Options(image_prefix=UriText("/data/")),
    "images_per_file": Options(images_per_file=2),
    "polygons": Options(polygons=True),
}


class TestOptions:
    def test_each_is_some_format_s(self) -> None:
        assert ASKED.keys() == {field.name for field in fields(Options)}
        assert all(takers(option) for option in ASKED)

    @pytest.mark.parametrize("option", ASKED)
    @pytest.mark.parametrize("format", FORMATS)
    def test_those_of_others_are_refused(self, tmp_path: Path, format: str, option: str) -> None:
        job = Export(Uri("/not/there"), format, Uri(str(tmp_path / "out")), Selection(), options=ASKED[option])
        flag = f"--{option.replace('_', '-')}"
        if option in FORMATS[format].takes:
            with pytest.raises(OutputError, match="does not exist"):
                export(job)
        else:
            with pytest.raises(ExportError, match=f"^{flag} means nothing to {format}: it is for {takers(option)}$"):
                export(job)

    @pytest.mark.parametrize(("format", "option"), [(f.name, option) for f in FORMATS.values() for option in f.takes])
    def test_taken_ones_change_the_export(self, tmp_path: Path, format: str, option: str) -> None:
        annotations = output_with_files(tmp_path)
        for name, options in (("without", Options()), ("with", ASKED[option])):
            export(Export(annotations, format, Uri(str(tmp_path / name)), Selection(0.01), options=options))
        assert contents(tmp_path / "with") != contents(tmp_path / "without")


class TestSummary:
    def said(self, tmp_path: Path, format: str, picture: Picture, selection: Selection, **options: object) -> str:
        uri = write_output(tmp_path / "annotations", [picture, Picture("f", None)], **options)  # type: ignore[arg-type]
        return export(Export(uri, format, Uri(str(tmp_path / "out")), selection)).text()

    def test_counts(self, tmp_path: Path) -> None:
        text = self.said(tmp_path, "coco", Picture("a", [FULL, EMPTY, FULL]), Selection(0.31))
        assert text.startswith("1 image, 1 label; left out: 1 failed image, 1 detection below their threshold")
        assert "1 detections with masks without a pixel were left out" in text
        assert "numbered from 1" in text
        assert "no score threshold" not in text
        assert "run.json lists" not in text
        assert "not finished" not in text

    def test_results_keep_everything(self, tmp_path: Path) -> None:
        text = self.said(tmp_path, "coco-results", Picture("a", [FULL, EMPTY]), Selection(), list_categories=False)
        *lines, ids = text.splitlines()
        assert lines == [
            "1 image, 2 labels; left out: 1 failed image, 0 detections below their threshold",
            "1 detections with masks without a pixel were kept",
        ]
        assert ids.startswith("image ids are strings: numbered from 1")

    def test_what_one_should_know(self, tmp_path: Path) -> None:
        picture = Picture("a", [FULL])
        text = self.said(tmp_path, "cvat", picture, Selection(), list_categories=False, state=RunState.RUNNING)
        assert "no score threshold was given" in text
        assert "the 1 of which something was found" in text
        assert "has not finished" in text
