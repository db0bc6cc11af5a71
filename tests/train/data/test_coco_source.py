from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from pipeline.coco.errors import InputError
from pipeline.model.categories import Category
from pipeline.storage.uris import Uri, UriText
from pipeline.train.data.books import DataReport
from pipeline.train.data.coco_source import read_coco
from pipeline.train.data.labelled import DataError, LabelledImage
from tests.train.data_cases import CATEGORIES, Json, annotation, write_coco

BOX = [4, 5, 10, 8]


def _read(folder: Path, annotations: list[Json], **options: Any) -> tuple[list[LabelledImage], DataReport]:
    uri = write_coco(folder, annotations, num_images=options.pop("num_images", 1), pictures=False)
    images, _, report = read_coco(Uri(uri), Uri(str(folder)), **options)
    assert report.balanced
    return images, report


def test_labels_are_positions_in_the_order_of_the_ids_and_files_lie_below_the_root(tmp_path: Path) -> None:
    uri = write_coco(tmp_path, [annotation(1, 1, BOX, 7), annotation(2, 1, BOX, 3)], pictures=False)
    (image,), classes, report = read_coco(Uri(uri), Uri("s3://bucket/photos"))
    assert classes == (Category(3, "house"), Category(7, "tree"))
    assert (image.image_id, image.uri, image.size) == (1, UriText("s3://bucket/photos/1.png"), (20, 30))
    assert (image.labels, image.ignored) == ((1, 0), (False, False))
    assert report == DataReport(images=1, usable=1, annotations=2, objects=2)


FATES = [
    ("inside", BOX, {}, {"objects": 1}),
    ("crowd", BOX, {"iscrowd": 1}, {"ignored": 1}),
    ("over the left and upper edge", [-5, -6, 12, 12], {}, {"objects": 1, "clipped": 1}),
    ("over the right edge", [25, 5, 20, 5], {}, {"objects": 1, "clipped": 1}),
    ("beyond the edge by rounding", [20, 5, 10.5, 5], {}, {"objects": 1}),
    ("all of it outside on the right", [30, 5, 10, 10], {}, {"outside": 1}),
    ("all of it outside above", [5, -20, 10, 20], {}, {"outside": 1}),
    ("no width", [4, 5, 0, 8], {}, {"no_area": 1}),
    ("negative height", [4, 5, 10, -8], {}, {"no_area": 1}),
    ("three pixels", [4, 5, 3, 1], {}, {"tiny": 1}),
    ("mask elsewhere", BOX, {"segmentation": [[40, 40, 50, 40, 50, 50]]}, {"tiny": 1}),
]


@pytest.mark.parametrize(("box", "other", "fate"), [case[1:] for case in FATES], ids=[case[0] for case in FATES])
def test_each_annotation_is_counted_once(
    box: list[float], other: dict[str, Any], fate: dict[str, int], tmp_path: Path
) -> None:
    images, report = _read(tmp_path, [annotation(1, 1, box, **other)])
    kept = fate.get("objects", 0) + fate.get("ignored", 0)
    assert report == DataReport(images=1, usable=1, negatives=1 - kept, annotations=1, **fate)
    assert images[0].ignored == (("ignored" in fate,) if kept else ())


def test_clipped_masks_are_what_is_left_inside(tmp_path: Path) -> None:
    (image,), _ = _read(tmp_path, [annotation(1, 1, [-5, -6, 12, 12]), annotation(2, 1, [25, 15, 20, 15])])
    sample = image.sample(np.zeros((20, 30, 3), np.uint8))
    assert sample.boxes.tolist() == [[0, 0, 7, 6], [25, 15, 30, 20]]
    assert sample.masks.sum(axis=(1, 2)).tolist() == [42, 25]


def test_all_three_forms_of_a_mask_are_those_of_pycocotools(tmp_path: Path) -> None:
    mask = np.zeros((20, 30), np.uint8, order="F")
    mask[3:9, 4:11] = 1
    mask[5, 6] = 0
    compressed = coco_mask.encode(mask)
    edges = np.flatnonzero(np.diff(mask.ravel("F").astype(int))) + 1
    runs = np.diff([0, *edges, mask.size]).tolist()
    forms = [
        [[4.5, 3.2, 18, 5, 12, 15.7], [20, 2, 28, 2, 24, 12]],
        {"size": [20, 30], "counts": compressed["counts"].decode()},
        {"size": [20, 30], "counts": runs},
    ]
    annotations = [annotation(n, 1, BOX, segmentation=form) for n, form in enumerate(forms, start=1)]
    (image,), _ = _read(tmp_path, annotations)
    coco = COCO(str(tmp_path / "instances.json"))
    expected = [coco.annToMask(entry) for entry in annotations]
    sample = image.sample(np.zeros((20, 30, 3), np.uint8))
    np.testing.assert_array_equal(sample.masks, np.array(expected, np.bool_))
    np.testing.assert_array_equal(sample.masks[2], mask)


def test_empty_images_are_negatives_unless_they_are_not_wanted(tmp_path: Path) -> None:
    annotations = [annotation(1, 2, BOX)]
    images, report = _read(tmp_path, annotations, num_images=3)
    assert [image.image_id for image in images] == [1, 2, 3]
    assert (report.usable, report.negatives, report.left_out) == (3, 2, 0)
    images, report = _read(tmp_path, annotations, num_images=3, keep_empty=False)
    assert [image.image_id for image in images] == [2]
    assert (report.usable, report.negatives, report.left_out) == (1, 0, 2)


def test_given_classes_are_matched_by_name(tmp_path: Path) -> None:
    classes = (Category(1, "tree"), Category(2, "car"), Category(3, "house"))
    (image,), _ = _read(tmp_path, [annotation(1, 1, BOX, 3), annotation(2, 1, BOX, 7)], classes=classes)
    assert image.labels == (2, 0)


def test_a_class_that_is_not_trained_is_an_error_that_names_both_lists(tmp_path: Path) -> None:
    classes = (Category(1, "house"), Category(2, "car"))
    with pytest.raises(DataError, match=r"not trained: tree\. Its classes: tree, house\. Trained classes: house, car"):
        _read(tmp_path, [annotation(1, 1, BOX, 7)], classes=classes)
    images, _ = _read(tmp_path, [annotation(1, 1, BOX, 3)], classes=classes)  # listed and not in use does no harm
    assert images[0].labels == (0,)


BROKEN: list[tuple[str, Json, str]] = [
    ("no mask", {"segmentation": []}, r"annotations\[0\] \(id 1\): it has no segmentation, and masks"),
    ("polygon of two points", {"segmentation": [[1, 2, 3, 4]]}, "annotation 1 of image 1: a polygon must be"),
    (
        "mask of another size",
        {"segmentation": {"size": [30, 20], "counts": "0"}},
        "image 1: the mask's size .* 30 x 20",
    ),
    (
        "runs that do not fill the image",
        {"segmentation": {"size": [20, 30], "counts": "53"}},
        "instances.json, annotation 1 of image 1: run lengths of 8 pixels in all for a mask of 20 x 30",
    ),
    ("unknown category", {"category_id": 5}, "the list 'categories' lacks 5"),
    ("image that is not listed", {"image_id": 9}, "does not list: 9"),
    ("box of text", {"bbox": "wide"}, "bbox must be four finite numbers"),
]


@pytest.mark.parametrize(("change", "message"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN])
def test_what_cannot_be_read_is_an_error_that_says_where(change: Json, message: str, tmp_path: Path) -> None:
    with pytest.raises((DataError, InputError), match=message):
        _read(tmp_path, [{**annotation(1, 1, BOX), **change}])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"images": [], "annotations": []}, "it needs the lists"),
        ([annotation(1, 1, BOX)], "it needs the lists"),
        ({"images": [], "annotations": [], "categories": CATEGORIES}, "no images to train on: no images"),
        ({"images": [{"id": 1, "height": 2, "width": 2}], "annotations": [], "categories": []}, "no file_name"),
    ],
)
def test_files_that_are_no_data_set(content: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "instances.json").write_text(json.dumps(content))
    with pytest.raises((DataError, InputError), match=message):
        read_coco(Uri(str(tmp_path / "instances.json")), Uri(str(tmp_path)))


def test_a_path_out_of_the_image_root_is_refused(tmp_path: Path) -> None:
    content = {"images": [{"id": 1, "height": 2, "width": 2, "file_name": "../../key.png"}], "annotations": []}
    (tmp_path / "instances.json").write_text(json.dumps({**content, "categories": []}))
    with pytest.raises(DataError, match=r"image 1: .* climbs out of the image root"):
        read_coco(Uri(str(tmp_path / "instances.json")), Uri(str(tmp_path)))


def test_compressed_files_are_read(tmp_path: Path) -> None:
    uri = write_coco(tmp_path, [annotation(1, 1, BOX)], pictures=False)
    (tmp_path / "instances.json.gz").write_bytes(gzip.compress(Path(uri).read_bytes()))
    assert read_coco(Uri(uri + ".gz"), Uri(str(tmp_path))) == read_coco(Uri(uri), Uri(str(tmp_path)))
