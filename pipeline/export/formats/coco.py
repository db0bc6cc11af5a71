"""COCO's two files: results (detections with scores) and data sets (pseudo-labels). Masks stay as they are, in RLE.

Boxes are the model's own, not those around the masks. Numbers are exact: a float32 of the output is written as the
double that equals it.

COCO's tools want integer image ids, the same in both files. Where the output's ids are integers, these are used. Where
they are strings, the annotated images are numbered from 1 in the order of the output's files, and the string stands
beside the number as `IMAGE_ID`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO

from pipeline.coco.rows import IMAGE_ID
from pipeline.export.formats.base import FileFormat
from pipeline.export.labels import ImageInfo, ImageLabels, Labels

_NUMBERED = (
    f"numbered from 1 in the order of the output, with the string in {IMAGE_ID}; coco and coco-results have the same "
    "numbers as long as the output stays as it is"
)


def write_coco_results(labels: Labels, file: BinaryIO) -> Sequence[str]:
    """A list of results, as ``COCO.loadRes`` of the data set of the same output takes it."""
    ids = [category.id for category in labels.source.categories]
    _write_list(file, (_results(number, image, ids) for number, image in enumerate(labels.images(), 1)))
    return _remarks(labels)


def write_coco(labels: Labels, file: BinaryIO) -> Sequence[str]:
    """A data set: ``info``, ``categories``, ``images`` and ``annotations``, in this order."""
    categories = [{"id": category.id, "name": category.name} for category in labels.source.categories]
    file.write(b'{"info":' + to_json(_info(labels)))
    file.write(b',\n"categories":' + to_json(categories) + b',\n"images":')
    _write_list(file, ([_image(number, image)] for number, image in enumerate(labels.image_infos(), 1)))
    file.write(b',\n"annotations":')
    _write_list(file, _annotations(labels))
    file.write(b"}\n")
    return _remarks(labels)


COCO = FileFormat(
    name="coco", about="a COCO data set of pseudo-labels, with scores and where they come from", write=write_coco
)
COCO_RESULTS = FileFormat(
    name="coco-results",
    about="COCO results, for pycocotools' loadRes",
    is_results=True,
    write=write_coco_results,
)


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


def _annotations(labels: Labels) -> Iterator[list[dict[str, Any]]]:
    ids = [category.id for category in labels.source.categories]
    annotation_id = 1
    for number, image in enumerate(labels.images(), 1):
        annotations = _results(number, image, ids)
        for annotation, area in zip(annotations, image.areas.tolist(), strict=True):
            annotation |= {"id": annotation_id, "area": int(area), "iscrowd": 0}
            annotation_id += 1
        yield annotations


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


def _info(labels: Labels) -> dict[str, Any]:
    """Where the labels come from. No date of its own: the same input gives the same bytes."""
    image_ids = _NUMBERED if labels.source.string_ids else "those of the annotated output"
    description = "Pseudo-labels: detections of a model, not checked by people"
    return {"description": description, "image_ids": image_ids, **labels.report()}
