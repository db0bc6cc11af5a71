"""YOLO segmentation labels: a text file per image, a line per object: class index and one polygon, 0 to 1.

The one format here that is lossy: see `LOSSY`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import lru_cache
from typing import BinaryIO

import numpy as np
import yaml
from pycocotools import mask as coco_mask

from pipeline.export.formats.base import FolderFormat
from pipeline.export.labels import ImageInfo, ImageLabels, Labels
from pipeline.export.outlines.contours import outline
from pipeline.export.outlines.crops import Crop
from pipeline.export.target import Folder
from pipeline.storage.file_names import TakenPaths, alternatives, safe_path, split_suffix
from pipeline.storage.map_ahead import map_ahead
from pipeline.tables.csv_text import csv_line

LOSSY = (
    "LOSSY: a YOLO label is one polygon, its coordinates rounded to 6 decimals, without a score. Parts and holes of a "
    "mask are joined to that polygon by bridges of zero width; readers that draw outlines (cv2.fillPoly does) make "
    "masks up to a pixel larger and draw the bridges. Export to coco for exact masks."
)
IOU_SAMPLE = 500
_DECIMALS = 6
_PUTS_AT_ONCE = 16
# Ultralytics looks for files with these suffixes, and for no others; whatever they hold is read by its content.
_SUFFIXES = frozenset({".bmp", ".dng", ".heic", ".jpeg", ".jpg", ".mpo", ".pfm", ".png", ".tif", ".tiff", ".webp"})
_ADDED_SUFFIX = ".jpg"


class PolygonLoss:
    """How much of the first masks their polygons keep: IoU after reading the text back, by pycocotools' fill rule."""

    def __init__(self) -> None:
        self.ious: list[float] = []

    def add(self, polygon: str, counts: str, image_size: tuple[int, int]) -> None:
        """Compare a polygon as it was written with its mask."""
        if len(self.ious) < IOU_SAMPLE:
            height, width = image_size
            points = np.array(polygon.split(), np.float64).reshape(-1, 2) * (width, height)
            (read,) = coco_mask.frPyObjects([points.reshape(-1).tolist()], height, width)
            mask = {"size": [height, width], "counts": counts.encode()}
            self.ious.append(float(coco_mask.iou([read], [mask], [0])[0, 0]))

    def __str__(self) -> str:
        if not self.ious:
            return "IoU of polygons and masks: no masks"
        return (
            f"IoU of polygons and masks, first {len(self.ious)}: mean {np.mean(self.ious):.6f}, "
            f"least {min(self.ious):.6f}"
        )


def write_yolo(labels: Labels, folder: Folder) -> Sequence[str]:
    """The labels, ``data.yaml``, ``images.csv`` (which image belongs where) and ``README.txt``.

    An image without labels has an empty file: it is a negative. The images themselves are not copied.

    Returns:
        What is lossy, how many images belong under another name than theirs, and the loss measured on a sample.
    """
    loss = PolygonLoss()
    with folder.open("images.csv") as table:
        files = _LabelFiles(table, loss)
        for _ in map_ahead(lambda file: folder.put(*file), files.of(labels), _PUTS_AT_ONCE, 2 * _PUTS_AT_ONCE):
            pass
    folder.put("data.yaml", _data_yaml(labels, loss).encode())
    folder.put("README.txt", _readme(loss).encode())
    return LOSSY, *files.remarks(), str(loss)


YOLO_SEG = FolderFormat(name="yolo-seg", about="a polygon an object", is_lossy=True, write=write_yolo)


class _LabelFiles:
    """The label files of all images; meanwhile the table of images and the loss."""

    def __init__(self, table: BinaryIO, loss: PolygonLoss) -> None:
        self._table = table
        self._loss = loss
        self._renamed = 0

    def of(self, labels: Labels) -> Iterator[tuple[str, bytes]]:
        """Names and contents."""
        self._table.write(csv_line("label", "image", "image_id", "image_uri"))
        with closing(TakenPaths()) as taken:
            for image in labels.images():
                place, label = _places(image.image, taken)
                self._renamed += place != f"images/{image.image.path}"
                self._table.write(csv_line(label, place, image.image.id, image.image.uri or ""))
                yield label, _label_file(image, self._loss)

    def remarks(self) -> list[str]:
        if not self._renamed:
            return []
        return [f"images that belong under another name than their own: {self._renamed:,} (images.csv, column image)"]


def _places(image: ImageInfo, taken: TakenPaths) -> tuple[str, str]:
    """Where an image and its label file belong in the folder; nothing else is there."""
    for path in alternatives(safe_path(image.path.partition("://")[2] or image.path), image.id):
        place = f"images/{path}"
        if split_suffix(place)[1].lower() not in _SUFFIXES:
            place += _ADDED_SUFFIX
        if taken.take(place, label := label_path(place)):
            return place, label
    raise AssertionError("there are always further paths")


def label_path(image: str) -> str:
    """Where ultralytics looks for the label of an image: ``labels`` for the last folder ``images``, ``.txt`` for the
    suffix.

    Args:
        image: a relative path, ``images/`` before it and with a suffix.
    """
    head, _, tail = f"/{image}".rpartition("/images/")
    return f"{head}/labels/{split_suffix(tail)[0]}.txt".removeprefix("/")


def _label_file(image: ImageLabels, loss: PolygonLoss) -> bytes:
    lines = []
    for index, category in enumerate(image.categories.tolist()):
        polygon = polygon_text(image.crop(index), image.image.size)
        loss.add(polygon, image.counts[index], image.image.size)
        lines.append(f"{category} {polygon}\n")
    return "".join(lines).encode()


def polygon_text(crop: Crop, image_size: tuple[int, int]) -> str:
    """x y x y ... of a mask's outline, as fractions of the image's width and height (``image_size`` is H, W)."""
    height, width = image_size
    across, down = _fractions(width), _fractions(height)
    return " ".join(f"{across[crop.left + x]} {down[crop.top + y]}" for x, y in outline(crop.pixels).tolist())


@lru_cache(maxsize=64)
def _fractions(length: int) -> list[str]:
    """0, 1, ... ``length`` over ``length``, as text: corners lie on pixel edges, so there are no others."""
    return [repr(round(position / length, _DECIMALS)) for position in range(length + 1)]


def _data_yaml(labels: Labels, loss: PolygonLoss) -> str:
    content = {  # without "path": relative to this file
        "train": "images",
        "val": "images",
        "names": {index: category.name for index, category in enumerate(labels.source.categories)},
        "maskfleet": labels.report(),
    }
    comment = f"# {LOSSY}\n# {loss}\n# No split was made: train and val are the same pseudo-labelled images.\n"
    return comment + yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def _readme(loss: PolygonLoss) -> str:
    return (
        "YOLO segmentation labels\n\n"
        "The images are not here: images.csv says for each label file where its image belongs (column image, below\n"
        "this folder) and where it came from (image_uri). An empty label file is an image without objects.\n\n"
        'Labels lie where ultralytics looks: in the image\'s path, with "labels" for the last folder "images".\n'
        "A name that some file system does not take, or that is taken, was changed. An image whose suffix ultralytics\n"
        "does not look for has .jpg behind it; that is enough unless it is in a format that ultralytics does not read\n"
        "(GIF, PPM): convert those. In images.csv a cell that a spreadsheet would take for a formula begins with '.\n\n"
        f"{LOSSY}\n{loss}\n"
    )
