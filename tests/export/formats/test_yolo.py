"""YOLO labels, read back by two fill rules: pycocotools' (area) and ultralytics' (cv2.fillPoly, outline included)."""

from __future__ import annotations

import csv
import glob
import os
from pathlib import Path, PureWindowsPath
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from pipeline.export.formats.yolo import LOSSY, pixels_of, write_yolo
from pipeline.export.outlines.contours import PolygonLoss
from pipeline.export.target import whole_folder
from pipeline.storage.uris import Uri
from tests.export.export_cases import (
    CATEGORIES,
    EMPTY,
    MASKS,
    Mask,
    Picture,
    awkward_pictures,
    counts_of,
    labels_of,
    write_output,
)

FULL = MASKS["full"]
# Of ultralytics 8.3, as is the rule of `ultralytics_label`.
IMG_FORMATS = {"bmp", "dng", "jpeg", "jpg", "mpo", "png", "tif", "tiff", "webp", "pfm", "heic"}


def export(tmp_path: Path, pictures: list[Picture]) -> tuple[Path, list[str]]:
    out = tmp_path / "yolo"
    with whole_folder(Uri(str(out)), overwrite=False) as folder:
        remarks = write_yolo(labels_of(write_output(tmp_path / "out", pictures)), folder)
    return out, list(remarks)


def polygons(file: Path) -> list[tuple[int, np.ndarray]]:
    lines = [line.split() for line in file.read_text().splitlines()]
    return [(int(line[0]), np.array(line[1:], float).reshape(-1, 2)) for line in lines]


def filled(polygon: np.ndarray, mask: Mask) -> Mask:
    height, width = mask.shape
    (rle,) = coco_mask.frPyObjects([(polygon * (width, height)).reshape(-1).tolist()], height, width)
    return coco_mask.decode(rle).astype(bool)


def iou(one: Mask, other: Mask) -> float:
    return float((one & other).sum() / (one | other).sum())


def blob(height: int, width: int) -> Mask:
    y, x = np.mgrid[:height, :width]
    y, x = (y / height - 0.5) * 2, (x / width - 0.5) * 2
    radius, angle = np.hypot(x, y), np.arctan2(y, x)
    return (radius < 0.7 + 0.15 * np.sin(5 * angle)) & (radius > 0.2)


def test_masks_come_back(tmp_path: Path) -> None:
    """Six decimals move no corner of these small images far enough to matter: the loss is the reader's."""
    pictures = awkward_pictures()
    out, remarks = export(tmp_path, pictures)
    files = {int(path.stem): path for path in (out / "labels").rglob("*.txt")}
    assert files.keys() == {picture.id for picture in pictures if picture.masks is not None}
    for picture in pictures:
        if picture.masks is None:
            continue
        for (_, polygon), mask in zip(polygons(files[picture.id]), picture.masks, strict=True):
            assert polygon.min() >= 0
            assert polygon.max() <= 1
            assert len(polygon) >= 4
            assert iou(filled(polygon, mask), mask) == 1
    assert any(remark.startswith("LOSSY") for remark in remarks)


@pytest.mark.parametrize(("size", "bound"), [((480, 640), 0.985), ((61, 47), 0.9)])
def test_as_ultralytics_fills(tmp_path: Path, size: tuple[int, int], bound: float) -> None:
    """It draws the outline as well, so that masks grow by a pixel at the right and at the bottom."""
    mask = blob(*size)
    out, _ = export(tmp_path, [Picture(1, [mask])])
    ((_, polygon),) = polygons(out / "labels" / "1.txt")
    canvas = np.zeros(size, np.uint8)
    cv2.fillPoly(canvas, [(polygon * size[::-1]).astype(np.int32)], color=1)
    assert iou(canvas.astype(bool), mask) > bound
    assert iou(filled(polygon, mask), mask) > 0.999


def test_files(tmp_path: Path) -> None:
    pictures = [
        Picture(1, [EMPTY, FULL], labels=[1, 1], uri="s3://pictures/a/x.jpg"),
        Picture(2, [], uri="s3://pictures/b/x.PNG"),
        Picture(3, None),
    ]
    out, remarks = export(tmp_path, pictures)
    assert (out / "labels" / "a" / "x.txt").read_text() == "1 0.0 0.0 1.0 0.0 1.0 1.0 0.0 1.0\n"
    assert (out / "labels" / "b" / "x.txt").read_text() == "", "a negative"
    text = (out / "data.yaml").read_text("utf-8")
    assert text.startswith(f"# {LOSSY}\n# IoU of polygons and masks, first 1: mean 1.000000")
    content = yaml.safe_load(text)
    assert content["names"] == {i: category.name for i, category in enumerate(CATEGORIES)}
    assert content["maskfleet"]["weights_sha256"] == "a" * 64
    with (out / "images.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows == [
        {"label": "labels/a/x.txt", "image": "images/a/x.jpg", "image_id": "1", "image_uri": "s3://pictures/a/x.jpg"},
        {"label": "labels/b/x.txt", "image": "images/b/x.PNG", "image_id": "2", "image_uri": "s3://pictures/b/x.PNG"},
    ]
    assert LOSSY in (out / "README.txt").read_text()
    assert remarks[-1] == "IoU of polygons and masks, first 1: mean 1.000000, least 1.000000"


def test_images_that_differ_in_their_suffix_only(tmp_path: Path) -> None:
    """YOLO finds a label by the image's name without suffix: one of two must get another name."""
    pictures = [
        Picture(1, [FULL], labels=[0], uri="s3://pictures/x.jpg"),
        Picture(2, [FULL], labels=[1], uri="s3://pictures/x.png"),
        Picture(3, [], uri=None),
    ]
    out, _ = export(tmp_path, pictures)
    with (out / "images.csv").open(newline="") as file:
        rows = {row["image_id"]: row for row in csv.DictReader(file)}
    assert rows["1"]["label"] == "labels/x.txt"
    assert [polygons(out / rows[i]["label"])[0][0] for i in ("1", "2")] == [0, 1]
    for row in rows.values():
        stem = row["label"].removeprefix("labels/").removesuffix(".txt")
        assert Path(row["image"]).with_suffix("") == Path("images") / stem
    assert (rows["3"]["image"], rows["3"]["image_uri"]) == ("images/3.jpg", "")


def ultralytics_label(image: str) -> str:
    """Its ``img2label_paths``."""
    sa, sb = f"{os.sep}images{os.sep}", f"{os.sep}labels{os.sep}"
    return sb.join(image.rsplit(sa, 1)).rsplit(".", 1)[0] + ".txt"


def ultralytics_images(folder: Path) -> set[str]:
    """The images that it finds in a folder."""
    found = glob.glob(str(folder / "**" / "*.*"), recursive=True)
    return {file for file in found if file.rpartition(".")[-1].lower() in IMG_FORMATS and os.path.isfile(file)}


def check_as_ultralytics_reads(out: Path) -> list[dict[str, Any]]:
    """Put each image where images.csv says: each is found, has a label file of its own, and nothing is left over."""
    with (out / "images.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        (out / row["image"]).parent.mkdir(parents=True, exist_ok=True)
        (out / row["image"]).touch(exist_ok=False)
        assert ultralytics_label(str(out / row["image"])) == str(out / row["label"])
        for name in (row["image"], row["label"]):
            assert len({*map(str.casefold, (name, *(other[key] for other in rows for key in ("image", "label"))))}) == (
                2 * len(rows)
            )
            assert not PureWindowsPath(name).is_reserved()
            assert not any(part.endswith((".", " ")) for part in name.split("/"))
    assert ultralytics_images(out / "images") == {str(out / row["image"]) for row in rows}
    labels = {os.path.join(folder, name) for folder, _, names in os.walk(out) for name in names if name[-4:] == ".txt"}
    assert labels == {str(out / row["label"]) for row in rows} | {str(out / "README.txt")}
    return rows


@pytest.mark.parametrize(
    ("uris", "labels"),
    [
        (["s3://pictures/train/a.jpg"], ["labels/train/a.txt"]),
        (["s3://pictures/images/train/a.jpg"], ["images/labels/train/a.txt"]),
        (["http://images.cocodataset.org/images/v/1.jpg"], ["images/images.cocodataset.org/labels/v/1.txt"]),
        (["s3://pictures/images/images/a.jpg"], ["images/images/labels/a.txt"]),
        (["s3://pictures/images/x/images"], ["images/labels/x/images.txt"]),
        (["s3://pictures/Images/a.jpg"], ["labels/Images/a.txt"]),
        (["s3://pictures/DJI_1.mpo"], ["labels/DJI_1.txt"]),
        (["s3://pictures/a.JFIF", "s3://pictures/a.gif"], ["labels/a.JFIF.txt", "labels/a.gif.txt"]),
        (["s3://pictures/v1.2/a", "s3://pictures/v1.2/a.5"], ["labels/v1.2/a.txt", "labels/v1.2/a.5.txt"]),
        (["s3://pictures/.a/.b.jpg"], ["labels/_a/_b.txt"]),
        (["s3://pictures/NUL.jpg", "s3://pictures/a. /b:c.png"], ["labels/_NUL.txt", "labels/a__/b_c.txt"]),
    ],
)
def test_ultralytics_finds_the_labels(tmp_path: Path, uris: list[str], labels: list[str]) -> None:
    out, _ = export(tmp_path, [Picture(number, [FULL], uri=uri) for number, uri in enumerate(uris)])
    assert [row["label"] for row in check_as_ultralytics_reads(out)] == labels


_NAMES = st.sampled_from(["images", "labels", "a", "A", "a.jpg", "a.txt", "a.JPG", "a.png", "a.gif", "nul", "..", "é"])
_TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
_PATHS = st.lists(st.one_of(_NAMES, _TEXTS), min_size=1, max_size=4).map("/".join)
_ROOTS = st.sampled_from(["", "/", "s3://pictures/", "https://h/images/"])
_ODD = ["a\0b", "x" * 300 + ".jpg", "é" * 200, "a", "a.txt/b", "A.TXT", "../..", "a/" * 400 + "b.jpg", "=1+1", "a\rb"]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.builds(str.__add__, _ROOTS, _PATHS), min_size=1, max_size=8, unique=True))
@example(_ODD)
@example(["e\u0301.jpg", "\u00e9.jpg", "straße.jpg", "STRASSE.png", "a/b/c.jpg", "a/b.txt/x.png", "a/b.jpg"])
def test_any_ids_and_uris(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    """As ids of images that came as bytes, and as URIs."""
    pictures = [Picture(text, [FULL], uri=None) for text in texts]
    pictures += [Picture(f"by uri {number}", [], uri=text) for number, text in enumerate(texts)]
    out, _ = export(tmp_path_factory.mktemp("any"), pictures)
    rows = check_as_ultralytics_reads(out)
    for row, picture in zip(rows, pictures, strict=True):
        assert row["image_id"] in (picture.id, f"'{picture.id}")


def test_names_that_were_changed_are_counted(tmp_path: Path) -> None:
    _, remarks = export(tmp_path, [Picture("a?.jpg", [], uri=None), Picture("a.jpg", [], uri=None)])
    assert remarks[1] == "images that belong under another name than their own: 1 (images.csv, column image)"


def test_loss_by_hand() -> None:
    """A square of 2 x 2 pixels of which the polygon holds one half."""
    loss = PolygonLoss()
    assert str(loss).endswith("no masks")
    mask = np.zeros((4, 4), bool)
    mask[:2, :2] = True
    loss.add([pixels_of("0 0 0.25 0 0.25 0.5 0 0.5", (4, 4))], counts_of(mask), (4, 4))
    loss.add([pixels_of("0 0 0.5 0 0.5 0.5 0 0.5", (4, 4))], counts_of(mask), (4, 4))
    assert loss.ious == [0.5, 1.0]
    assert str(loss) == "IoU of polygons and masks, first 2: mean 0.750000, least 0.500000"
