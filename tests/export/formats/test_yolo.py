"""YOLO labels, read back by two fill rules: pycocotools' (area) and ultralytics' (cv2.fillPoly, outline included)."""

from __future__ import annotations

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from pycocotools import mask as coco_mask

from pipeline.export.formats.yolo import LOSSY, PolygonLoss, write_yolo
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
    assert (rows["3"]["image"], rows["3"]["image_uri"]) == ("images/3", "")


def test_loss_by_hand() -> None:
    """A square of 2 x 2 pixels of which the polygon holds one half."""
    loss = PolygonLoss()
    assert str(loss).endswith("no masks")
    mask = np.zeros((4, 4), bool)
    mask[:2, :2] = True
    loss.add("0 0 0.25 0 0.25 0.5 0 0.5", counts_of(mask), (4, 4))
    loss.add("0 0 0.5 0 0.5 0.5 0 0.5", counts_of(mask), (4, 4))
    assert loss.ious == [0.5, 1.0]
    assert str(loss) == "IoU of polygons and masks, first 2: mean 0.750000, least 0.500000"
