"""YOLO segmentation labels: a text file per image, a line per object: class index and one polygon, 0 to 1.

The one format here that is lossy: see `LOSSY`.
"""

from __future__ import annotations

import csv
import hashlib
import io
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import lru_cache
from pathlib import PurePosixPath
from typing import BinaryIO

import numpy as np
import yaml
from pycocotools import mask as coco_mask

from pipeline.export.formats.base import FolderFormat
from pipeline.export.labels import ImageInfo, ImageLabels, Labels
from pipeline.export.outlines.contours import outline
from pipeline.export.outlines.crops import Crop
from pipeline.export.target import Folder
from pipeline.images.decode import IMAGE_SUFFIXES
from pipeline.storage.map_ahead import map_ahead

LOSSY = (
    "LOSSY: a YOLO label is one polygon, its coordinates rounded to 6 decimals, without a score. Parts and holes of a "
    "mask are joined to that polygon by bridges of zero width; readers that draw outlines (cv2.fillPoly does) make "
    "masks up to a pixel larger and draw the bridges. Export to coco for exact masks."
)
IOU_SAMPLE = 500
_DECIMALS = 6
_PUTS_AT_ONCE = 16


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
    """``labels/**.txt``, ``data.yaml``, ``images.csv`` (which image belongs where) and ``README.txt``.

    An image without labels has an empty file: it is a negative. The images themselves are not copied.

    Returns:
        What is lossy, and the loss measured on a sample.
    """
    loss = PolygonLoss()
    with folder.open("images.csv") as table:
        files = _label_files(labels, table, loss)
        for _ in map_ahead(lambda file: folder.put(*file), files, _PUTS_AT_ONCE, 2 * _PUTS_AT_ONCE):
            pass
    folder.put("data.yaml", _data_yaml(labels, loss).encode())
    folder.put("README.txt", _readme(loss).encode())
    return LOSSY, str(loss)


YOLO_SEG = FolderFormat(name="yolo-seg", about="a polygon an object", is_lossy=True, write=write_yolo)


def _label_files(labels: Labels, table: BinaryIO, loss: PolygonLoss) -> Iterator[tuple[str, bytes]]:
    """Names and contents; meanwhile the table of images and the loss."""
    table.write(_csv_line("label", "image", "image_id", "image_uri"))
    with closing(UniqueNames()) as names:
        for image in labels.images():
            stem, suffix = _split(image.image)
            stem = names.take(stem, image.image.id)
            label = f"labels/{stem}.txt"
            table.write(_csv_line(label, f"images/{stem}{suffix}", str(image.image.id), image.image.uri or ""))
            yield label, _label_file(image, loss)


def _split(image: ImageInfo) -> tuple[str, str]:
    suffix = PurePosixPath(image.path).suffix
    return (image.path[: -len(suffix)], suffix) if suffix.lower() in IMAGE_SUFFIXES else (image.path, "")


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


def _csv_line(*cells: str) -> bytes:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue().encode()


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
        f"{LOSSY}\n{loss}\n"
    )


class UniqueNames:
    """Makes each name different from all before it; which names there were lies on disk, not in memory."""

    def __init__(self) -> None:
        self._names = sqlite3.connect("")  # an empty name: a temporary file that goes with the connection
        self._names.execute("CREATE TABLE names (name TEXT PRIMARY KEY) WITHOUT ROWID")

    def take(self, name: str, key: int | str) -> str:
        """The name itself, or with a suffix made from the key where it is taken.

        Args:
            name: the one that is wanted.
            key: different for every call.
        """
        suffix = hashlib.sha256(str(key).encode()).hexdigest()[:16]
        return name if self._add(name) else self.take(f"{name}_{suffix}", key)

    def _add(self, name: str) -> bool:
        return self._names.execute("INSERT OR IGNORE INTO names VALUES (?)", (name,)).rowcount == 1

    def close(self) -> None:
        """Remove the file."""
        self._names.close()
