"""COCO's two files: results (detections with scores) and data sets (pseudo-labels). Masks stay as they are, in RLE,
unless a data set is to have polygons: see `LOSSY`.

Boxes are the model's own, not those around the masks. Numbers are exact: a float32 of the output is written as the
double that equals it.

COCO's tools want integer image ids, the same in both files. Where the output's ids are integers, these are used. Where
they are strings, the annotated images are numbered from 1 in the order of the output's files, and the string stands
beside the number as `IMAGE_ID`.

Either may be a folder of files instead, each a whole one with all categories, of so many images and what is on them.
No id of an image or annotation is in two of these, and those of the same number belong together.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any, BinaryIO

import numpy as np

from pipeline.coco.rows import IMAGE_ID
from pipeline.export.formats.base import NO_OPTIONS, Options
from pipeline.export.labels import ImageInfo, ImageLabels, Labels
from pipeline.export.outlines.contours import PolygonLoss, outlines
from pipeline.export.target import Folder

_NUMBERED = (
    f"numbered from 1 in the order of the output, with the string in {IMAGE_ID}; coco and coco-results have the same "
    "numbers as long as the output stays as it is"
)
LOSSY = (
    "LOSSY: a mask is a polygon for each of its parts, along the pixels' edges, with holes joined to it by bridges of "
    "zero width. Readers that draw outlines (cv2.fillPoly does) make masks up to a pixel larger and draw the bridges. "
    "Without --polygons masks are exact."
)


def write_coco_results(labels: Labels, file: BinaryIO) -> Sequence[str]:
    """A list of results, as ``COCO.loadRes`` of the data set of the same output takes it."""
    writer = _Results(labels)
    writer.write(file, None)
    return writer.remarks()


def write_coco_results_parts(labels: Labels, folder: Folder, options: Options) -> Sequence[str]:
    """``results-00000-of-00012.json`` and so on."""
    writer = _Results(labels)
    _write_parts("results", writer.write, labels, folder, options)
    return writer.remarks()


def write_coco(labels: Labels, file: BinaryIO, options: Options = NO_OPTIONS) -> Sequence[str]:
    """A data set: ``info``, ``categories``, ``images`` and ``annotations``, in this order."""
    writer = _DataSet(labels, options)
    writer.write(file, None)
    return writer.remarks()


def write_coco_parts(labels: Labels, folder: Folder, options: Options) -> Sequence[str]:
    """``instances-00000-of-00012.json`` and so on."""
    writer = _DataSet(labels, options)
    _write_parts("instances", writer.write, labels, folder, options)
    return writer.remarks()


def _write_parts(
    name: str, write: Callable[[BinaryIO, int | None], None], labels: Labels, folder: Folder, options: Options
) -> None:
    """As many files as the images need, and one if there are none."""
    per_file = options.images_per_file
    num_files = max(1, -(-labels.source.counts.annotated // per_file)) if per_file else 1
    for number in range(num_files):
        with folder.open(f"{name}-{number:05d}-of-{num_files:05d}.json") as file:
            write(file, per_file if number < num_files - 1 else None)


class _Results:
    """Files of results, each of the images that follow those of the one before."""

    def __init__(self, labels: Labels) -> None:
        self._labels = labels
        self._ids = [category.id for category in labels.source.categories]
        self._images = enumerate(labels.images(), 1)

    def write(self, file: BinaryIO, num_images: int | None) -> None:
        """Of so many images, or of all that are left."""
        some = islice(self._images, num_images)
        _write_list(file, (_results(number, image, self._ids) for number, image in some))

    def remarks(self) -> Sequence[str]:
        return _remarks(self._labels)


class _DataSet:
    """Files of a data set, likewise."""

    def __init__(self, labels: Labels, options: Options) -> None:
        self._labels = labels
        self._ids = [category.id for category in labels.source.categories]
        self._infos = enumerate(labels.image_infos(), 1)
        self._images = enumerate(labels.images(), 1)
        self._last_annotation = 0
        self._loss = PolygonLoss() if options.polygons else None

    def write(self, file: BinaryIO, num_images: int | None) -> None:
        """Of so many images, or of all that are left."""
        categories = [{"id": category.id, "name": category.name} for category in self._labels.source.categories]
        file.write(b'{"info":' + to_json(self._info()))
        file.write(b',\n"categories":' + to_json(categories) + b',\n"images":')
        _write_list(file, ([_image(number, image)] for number, image in islice(self._infos, num_images)))
        file.write(b',\n"annotations":')
        _write_list(file, (self._annotations(number, image) for number, image in islice(self._images, num_images)))
        file.write(b"}\n")

    def remarks(self) -> Sequence[str]:
        return (*((LOSSY, str(self._loss)) if self._loss else ()), *_remarks(self._labels))

    def _annotations(self, number: int, image: ImageLabels) -> list[dict[str, Any]]:
        annotations = _results(number, image, self._ids)
        for index, annotation in enumerate(annotations):
            self._last_annotation += 1
            annotation |= {"id": self._last_annotation, "area": int(image.areas[index]), "iscrowd": 0}
            if self._loss is not None:
                polygons = _polygons(image, index)
                self._loss.add(polygons, image.counts[index], image.image.size)
                annotation["segmentation"] = polygons
        return annotations

    def _info(self) -> dict[str, Any]:
        """Where the labels come from. No date of its own: the same input gives the same bytes."""
        image_ids = _NUMBERED if self._labels.source.string_ids else "those of the annotated output"
        description = "Pseudo-labels: detections of a model, not checked by people"
        masks = {"masks": LOSSY} if self._loss is not None else {}
        return {"description": description, "image_ids": image_ids, **masks, **self._labels.report()}


def to_json(value: object) -> bytes:
    """Compact, strict JSON in UTF-8.

    Raises:
        ValueError: a number that JSON does not have.
    """
    return json.dumps(value, separators=(",", ":"), allow_nan=False, ensure_ascii=False).encode()


def _write_list(file: BinaryIO, groups: Iterable[list[dict[str, Any]]]) -> None:
    """One JSON list out of many, each of these on a line."""
    separator = b"[\n"
    for group in groups:
        if group:
            file.write(separator + to_json(group)[1:-1])
            separator = b",\n"
    file.write(b"[]" if separator == b"[\n" else b"\n]")


def _remarks(labels: Labels) -> Sequence[str]:
    return (f"image ids are strings: {_NUMBERED}",) if labels.source.string_ids else ()


def _results(number: int, image: ImageLabels, ids: list[int]) -> list[dict[str, Any]]:
    size, image_ids = list(image.image.size), _image_ids(number, image.image)
    found = zip(image.categories.tolist(), image.boxes.tolist(), image.scores.tolist(), image.counts, strict=True)
    return [
        {
            **image_ids,
            "category_id": ids[category],
            "bbox": box,
            "score": score,
            "segmentation": {"size": size, "counts": counts},
        }
        for category, box, score, counts in found
    ]


def _polygons(image: ImageLabels, index: int) -> list[list[float]]:
    """x, y, x, y, ... of each part of a mask, in pixels: whole numbers, since corners lie on the pixels' edges."""
    crop = image.crop(index)
    corner = np.array([crop.left, crop.top])
    return [(ring + corner).reshape(-1).tolist() for ring in outlines(crop.pixels)]


def _image_ids(number: int, image: ImageInfo) -> dict[str, int | str]:
    """How a row of either file names its image, of which ``number`` is the place in the output."""
    return {"image_id": image.id} if isinstance(image.id, int) else {"image_id": number, IMAGE_ID: image.id}


def _image(number: int, image: ImageInfo) -> dict[str, Any]:
    height, width = image.size
    ids = _image_ids(number, image)
    entry: dict[str, Any] = {"id": ids.pop("image_id"), "file_name": image.path}
    entry |= {"height": height, "width": width}
    if image.uri is not None:
        entry["image_uri"] = image.uri
        if image.uri.startswith(("http://", "https://")):
            entry["coco_url"] = image.uri
    return entry | ids
