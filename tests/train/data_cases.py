"""Small data sets on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.storage.uris import UriText
from pipeline.train.data.labelled import LabelledImage

Json = dict[str, Any]
CATEGORIES = [{"id": 7, "name": "tree"}, {"id": 3, "name": "house"}]


def annotation(id_: int, image_id: int, box: list[float], category_id: int = 3, **other: Any) -> Json:
    x, y, w, h = box
    corners = [x, y, x + w, y, x + w, y + h, x, y + h]
    entry = {"id": id_, "image_id": image_id, "category_id": category_id, "bbox": box, "area": w * h}
    return {**entry, "iscrowd": 0, "segmentation": [corners], **other}


def write_coco(
    folder: Path,
    annotations: list[Json],
    num_images: int = 1,
    categories: list[Json] | None = None,
    pictures: bool = True,
) -> str:
    """Images of 20 x 30 (height x width) with ids 1, 2, ..., the picture of each in its number's grey."""
    images = [{"id": n, "height": 20, "width": 30, "file_name": f"{n}.png"} for n in range(1, num_images + 1)]
    for image in images if pictures else ():
        write_picture(folder, image["id"])
    path = folder / "instances.json"
    content = {
        "images": images,
        "annotations": annotations,
        "categories": CATEGORIES if categories is None else categories,
    }
    path.write_text(json.dumps(content))
    return str(path)


def write_picture(folder: Path, number: int, size: tuple[int, int] = (20, 30)) -> None:
    Image.fromarray(np.full((*size, 3), number, np.uint8)).save(folder / f"{number}.png")


def empty_images(folder: Path, num_images: int, first: int = 1) -> list[LabelledImage]:
    """Pictures without objects, each in its number's grey."""
    numbers = range(first, first + num_images)
    for number in numbers:
        write_picture(folder, number)
    return [LabelledImage(number, UriText(str(folder / f"{number}.png")), (20, 30), (), (), ()) for number in numbers]
