from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.annotations import reader as source_module
from pipeline.annotations.class_thresholds import Selection
from pipeline.annotations.data_file import OutputError
from pipeline.annotations.ledger import OutputStore
from pipeline.annotations.reader import open_source
from pipeline.export.errors import ExportError
from pipeline.export.labels import ExportCounts, Labels
from pipeline.storage.uris import Uri
from tests.export.export_cases import EMPTY, IDENTITY, MASKS, Picture, labels_of, table_of, write_output

FULL = MASKS["full"]


def test_values_are_those_of_the_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_module, "ROWS_PER_BATCH", 2)
    pictures = [Picture(i, [FULL] * (i % 3), scores=[0.1 + i / 100] * (i % 3)) for i in range(7)]
    labels = labels_of(write_output(tmp_path / "out", pictures[:3], pictures[3:]))
    found = {image.image.id: image for image in labels.images()}
    assert sorted(found) == list(range(7))
    for picture in pictures:
        image, wanted = found[picture.id], picture.detections()
        assert wanted is not None
        assert image.image.uri == f"s3://pictures/{picture.id}.jpg"
        assert image.image.path == f"{picture.id}.jpg"
        assert image.image.size == wanted.image_size
        np.testing.assert_array_equal(image.scores, wanted.scores.astype(np.float64))
        np.testing.assert_array_equal(image.boxes, wanted.boxes.astype(np.float32).astype(np.float64))
        np.testing.assert_array_equal(image.categories, wanted.labels)
        assert image.areas.tolist() == [20.0] * len(image)
        assert image.counts == [counts.decode() for counts in wanted.counts]
    assert list(labels.image_infos()) == [image.image for image in labels.images()]
    assert labels.tally == ExportCounts(images=7, labels=6)


def test_the_annotate_job_would_keep_the_same(tmp_path: Path) -> None:
    """float32(0.7) is less than 0.7, but the stage compares float32 with float32, and keeps it."""
    score = np.float32(0.7)
    assert score.astype(np.float64) < 0.7
    scores = [float(np.nextafter(score, np.float32(1))), float(score), float(np.nextafter(score, np.float32(0)))]
    uri = write_output(tmp_path / "out", [Picture(1, [FULL] * 3, scores=scores, labels=[1, 1, 1])])
    for selection in (Selection(0.7), Selection(0.9, {"cat": 0.7})):
        labels = labels_of(uri, selection)
        (image,) = labels.images()
        assert image.scores.tolist() == scores[:2]
        assert labels.tally == ExportCounts(images=1, labels=2, below_threshold=1)


def test_thresholds_of_classes(tmp_path: Path) -> None:
    picture = Picture(1, [FULL] * 4, scores=[0.9, 0.8, 0.3, 0.2], labels=[0, 1, 0, 1])
    labels = labels_of(write_output(tmp_path / "out", [picture]), Selection(0.25, {"cat": 0.85}))
    (image,) = labels.images()
    np.testing.assert_array_equal(image.scores, np.float32([0.9, 0.3]))


@pytest.mark.parametrize(("keep_empty", "kept"), [(False, 1), (True, 2)])
def test_masks_without_a_pixel(tmp_path: Path, keep_empty: bool, kept: int) -> None:
    labels = labels_of(write_output(tmp_path / "out", [Picture(1, [EMPTY, FULL])]), keep_empty=keep_empty)
    (image,) = labels.images()
    assert len(image) == kept
    assert labels.tally == ExportCounts(images=1, labels=kept, empty_masks=1)


def test_failed_images_are_counted(tmp_path: Path) -> None:
    labels = labels_of(write_output(tmp_path / "out", [Picture("a", None), Picture("b", [])]))
    assert [image.image.id for image in labels.images()] == ["b"]
    assert labels.tally == ExportCounts(images=1, failed_images=1)


def test_thresholds_for_unknown_classes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An error if all classes are known; else it may be one of which nothing was found."""
    with pytest.raises(ExportError, match="'cta'; did you mean 'cat'"):
        labels_of(write_output(tmp_path / "known", [Picture(1, [FULL])]), Selection(0, {"cta": 0.5}))
    uri = write_output(tmp_path / "found", [Picture(1, [FULL])], list_categories=False)
    with caplog.at_level(logging.WARNING):
        labels_of(uri, Selection(0, {"dog": 0.5}))
    assert "'dog'" in caplog.text


def test_a_category_that_run_json_does_not_list(tmp_path: Path) -> None:
    source = open_source(write_output(tmp_path / "out", [Picture(1, [FULL], labels=[1])]))
    for categories in (source.categories[:1], source.categories[2:], ()):
        labels = Labels(replace(source, categories=categories), Selection(), False)
        with pytest.raises(OutputError, match="category 3"):
            list(labels.images())


@pytest.mark.parametrize("column", ["scores", "boxes"])
def test_numbers_that_are_none(tmp_path: Path, column: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Picture.detections

    def damaged(picture: Picture) -> object:
        found = whole(picture)
        if found is not None and picture.id == 2:
            getattr(found, column)[-1] = np.nan
        return found

    monkeypatch.setattr(Picture, "detections", damaged)
    uri = write_output(tmp_path / "out", [Picture(1, [FULL]), Picture(3, []), Picture(2, [FULL])])
    with pytest.raises(OutputError, match=r"image 2 .*is not finite"):
        list(labels_of(uri).images())


@pytest.mark.parametrize(
    ("counts", "message"),
    [("5N", "a run of -2 pixels in a mask of 5 x 4"), ("53", "8 pixels in all"), ("d0", "has no pixels")],
)
def test_damaged_masks(tmp_path: Path, counts: str, message: str) -> None:
    picture = Picture(5, [FULL])
    whole = picture.detections()
    assert whole is not None
    store = OutputStore(Uri(str(tmp_path / "out")))
    damaged = replace(whole, counts=[counts.encode()])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Picture, "detections", lambda self: damaged)
        store.write_rows(table_of([picture]), IDENTITY)
    with pytest.raises(OutputError, match=f"image 5.*{message}"):
        next(labels_of(store.uri).images()).crop(0)
