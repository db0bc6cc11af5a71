from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from pipeline.annotations.class_thresholds import Selection
from pipeline.annotations.data_file import OutputError
from pipeline.model.categories import Category
from pipeline.storage.uris import Uri, UriText
from pipeline.train.data.books import DataReport
from pipeline.train.data.labelled import DataError
from pipeline.train.data.pseudo_labels import ScoreBands, read_pseudo_labels
from tests.evaluate.input_cases import Json, write_output

HOUSE, TREE, CAR = Category(3, "house"), Category(7, "tree"), Category(9, "car")
NAMES = {category.id: category.name for category in (HOUSE, TREE, CAR)}
BANDS = ScoreBands(Selection(0.8, {"tree": 0.5}), Selection(0.3))


def _found(image_id: int, category: Category, score: float, side: int = 5, left: int = 0) -> Json:
    mask = np.zeros((20, 30), np.uint8, order="F")
    mask[:side, left : left + side] = 1
    rle = coco_mask.encode(mask)
    segmentation = {"size": rle["size"], "counts": rle["counts"].decode()}
    box = {"bbox": [left, 0, side, side], "area": side * side, "segmentation": segmentation}
    return {"image_id": image_id, "category_id": category.id, "score": score, **box}


def _write(folder: Path, results: list[Json], num_images: int = 1, **options: Any) -> str:
    images = [{"id": number, "height": 20, "width": 30} for number in range(1, num_images + 1)]
    dataset = {"images": images, "annotations": []}
    write_output(str(folder), dataset, results, NAMES, **options)
    return str(folder)


FATES = [
    ("sure", HOUSE, 0.9, "objects"),
    ("exactly the upper threshold, which no float32 is", HOUSE, 0.8, "objects"),
    ("sure by its class's own threshold", TREE, 0.6, "objects"),
    ("between both", HOUSE, 0.6, "ignored"),
    ("exactly the lower threshold", TREE, 0.3, "ignored"),
    ("too unsure", HOUSE, 0.29, "below_threshold"),
    ("another class", CAR, 0.99, "foreign"),
]


@pytest.mark.parametrize(("category", "score", "fate"), [c[1:] for c in FATES], ids=[c[0] for c in FATES])
def test_what_a_score_makes_of_a_detection(category: Category, score: float, fate: str, tmp_path: Path) -> None:
    uri = _write(tmp_path, [_found(1, category, score), _found(2, HOUSE, 1.0)], num_images=2)
    (image, _), report = read_pseudo_labels(Uri(uri), BANDS, (TREE, HOUSE))
    kept = fate in ("objects", "ignored")
    other = DataReport(images=1, usable=1, annotations=1, objects=1)
    assert report == other + DataReport(images=1, usable=1, negatives=int(not kept), annotations=1, **{fate: 1})
    assert image.labels == (((TREE, HOUSE).index(category),) if kept else ())
    assert image.ignored == ((fate == "ignored",) if kept else ())


def test_each_image_has_its_own_detections_in_all_files(tmp_path: Path) -> None:
    results = [_found(n, HOUSE, score, left=n) for n in range(1, 9) for score in (0.9, 0.5, 0.1)[: n % 4]]
    images, report = read_pseudo_labels(Uri(_write(tmp_path, results, num_images=8)), BANDS, (HOUSE, TREE))
    assert report.balanced
    assert (report.images, report.usable, report.negatives, report.annotations) == (8, 8, 2, len(results))
    for image in images:
        number = int(image.image_id)
        assert (image.uri, image.size) == (UriText(f"s3://images/{number}.jpg"), (20, 30))
        assert image.ignored == (False, True)[: number % 4]
        sample = image.sample(np.zeros((20, 30, 3), np.uint8))
        assert sample.boxes.tolist() == [[number, 0, number + 5, 5]] * len(image.labels)


def test_empty_masks_are_dropped_and_failed_images_are_none(tmp_path: Path) -> None:
    uri = _write(tmp_path, [_found(1, HOUSE, 0.9, side=0), _found(1, HOUSE, 0.9, side=1)], num_images=3, failed=(2,))
    images, report = read_pseudo_labels(Uri(uri), BANDS, (HOUSE, TREE))
    assert [image.image_id for image in images] == [1, 3]
    assert report == DataReport(images=3, usable=2, negatives=2, failed=1, annotations=2, tiny=2)


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ({"counts": "00N8"}, "a run of -2 pixels"),
        ({"counts": "53"}, "run lengths of 8 pixels in all for a mask of 20 x 30"),
    ],
)
def test_a_damaged_mask_is_an_error_that_names_the_image(segmentation: Json, message: str, tmp_path: Path) -> None:
    good, bad = _found(1, HOUSE, 0.9), _found(2, HOUSE, 0.9)
    bad["segmentation"] |= segmentation
    with pytest.raises(DataError, match=f"image 2: the mask of a detection is damaged: {message}"):
        read_pseudo_labels(Uri(_write(tmp_path, [good, bad], 3)), BANDS, (HOUSE, TREE))
    unsure = {**bad, "score": 0.1}  # whose mask nobody looks at
    images, _ = read_pseudo_labels(Uri(_write(tmp_path / "b", [good, unsure], 3)), BANDS, (HOUSE, TREE))
    assert [len(image.counts) for image in images] == [1, 0, 0]


def test_images_without_objects_can_be_left_out(tmp_path: Path) -> None:
    uri = _write(tmp_path, [_found(1, HOUSE, 0.9), _found(2, HOUSE, 0.1)], num_images=3)
    images, report = read_pseudo_labels(Uri(uri), BANDS, (HOUSE, TREE), keep_empty=False)
    assert [image.image_id for image in images] == [1]
    assert report == DataReport(images=3, usable=1, left_out=2, annotations=2, objects=1, below_threshold=1)
    with pytest.raises(DataError, match="no images to train on: 3 images, 3 left out"):
        read_pseudo_labels(Uri(uri), ScoreBands(Selection(1), Selection(1)), (HOUSE,), keep_empty=False)


def test_thresholds_of_the_teachers_other_classes_do_no_harm(tmp_path: Path) -> None:
    uri = _write(tmp_path, [_found(1, HOUSE, 0.9), _found(1, TREE, 0.9)])
    (image,), report = read_pseudo_labels(Uri(uri), BANDS, (HOUSE,))
    assert (image.labels, report.foreign) == ((0,), 1)


def test_thresholds_that_cannot_be(tmp_path: Path) -> None:
    uri = _write(tmp_path, [_found(1, HOUSE, 0.9)])
    with pytest.raises(DataError, match="nobody knows: 'tre'; did you mean 'tree'"):
        read_pseudo_labels(Uri(uri), ScoreBands(Selection(0.5, {"tre": 0.6}), Selection()), (HOUSE, TREE))
    with pytest.raises(DataError, match=r"class 'tree': detections are ignored from 0\.5 on, above .* 0\.4"):
        read_pseudo_labels(Uri(uri), ScoreBands(Selection(0.9, {"tree": 0.4}), Selection(0.5)), (HOUSE, TREE))


def test_another_models_output_is_an_error_that_names_both_lists(tmp_path: Path) -> None:
    uri = _write(tmp_path, [_found(1, HOUSE, 0.9)])
    message = r"none of the trained classes\. Its classes: house\. Trained classes: boat"
    with pytest.raises(DataError, match=message):
        read_pseudo_labels(Uri(uri), ScoreBands(Selection(), Selection()), (Category(1, "boat"),))
    with pytest.raises(OutputError, match="does not exist"):
        read_pseudo_labels(Uri(str(tmp_path / "none")), BANDS, (HOUSE, TREE))
