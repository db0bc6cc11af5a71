"""Label Studio pre-annotations: tasks with brush masks as predictions, to be corrected by people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any
from xml.sax.saxutils import quoteattr

from pipeline.export.errors import ExportError
from pipeline.export.formats.base import FolderFormat
from pipeline.export.formats.coco import to_json
from pipeline.export.labels import ImageLabels, Labels
from pipeline.export.markup import css_colour, printable
from pipeline.export.outlines.brush_rle import encode_brush
from pipeline.export.target import Folder

TO_NAME, FROM_NAME = "image", "label"
# Label Studio reads a file of tasks as a whole, and refuses uploads above 250 MB.
FILE_BYTES = 64_000_000

_README = """Label Studio pre-annotations

1. Make a project and paste labeling_config.xml as its labelling interface (Settings > Labeling Interface > Code).
2. Import the files in tasks/, one after the other.

Each task shows the image at its URI. s3://, gs:// and azure-blob:// URIs need a cloud storage of the project;
local paths need Label Studio's local file serving, and "/data/local-files/?d=" before the path.

Masks are exact. The score of a prediction is the mean of its masks' scores; the lowest are the ones to look at first.
"""


def write_label_studio(labels: Labels, folder: Folder) -> Sequence[str]:
    """``tasks/tasks-00001.json`` and so on, ``labeling_config.xml`` and ``README.txt``.

    Returns:
        Nothing to remark.

    Raises:
        ExportError: an image without a URI: Label Studio could not show it.
    """
    folder.put("README.txt", _README.encode())
    folder.put("labeling_config.xml", _labeling_config(labels).encode())
    for number, tasks in enumerate(_files(labels), 1):
        folder.put(f"tasks/tasks-{number:05d}.json", b"[\n" + b",\n".join(tasks) + b"\n]\n")
    return ()


LABEL_STUDIO = FolderFormat(name="label-studio", about="pre-annotations with brush masks", write=write_label_studio)


def _files(labels: Labels) -> Iterator[list[bytes]]:
    """Tasks as JSON, as many as a file holds."""
    tasks: list[bytes] = []
    size_bytes = 0
    for image in labels.images():
        task = to_json(_task(image, labels))
        if tasks and size_bytes + len(task) > FILE_BYTES:
            yield tasks
            tasks, size_bytes = [], 0
        tasks.append(task)
        size_bytes += len(task)
    yield tasks


def _task(image: ImageLabels, labels: Labels) -> dict[str, Any]:
    if image.image.uri is None:
        raise ExportError(f"image {image.image.id!r} came as bytes, without a URI: Label Studio could not show it")
    prediction: dict[str, Any] = {
        "model_version": labels.source.provenance["model"],
        "result": [_region(image, i, labels) for i in range(len(image))],
    }
    if len(image):
        prediction["score"] = float(image.scores.mean())
    return {"data": {"image": image.image.uri, "image_id": image.image.id}, "predictions": [prediction]}


def _region(image: ImageLabels, index: int, labels: Labels) -> dict[str, Any]:
    height, width = image.image.size
    return {
        "id": f"mask-{index + 1}",
        "type": "brushlabels",
        "from_name": FROM_NAME,
        "to_name": TO_NAME,
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "value": {
            "format": "rle",
            "rle": encode_brush(image.crop(index), image.image.size),
            "brushlabels": [printable(labels.source.categories[image.categories[index]].name)],
        },
        "score": float(image.scores[index]),
    }


def _labeling_config(labels: Labels) -> str:
    lines = [
        f"    <Label value={quoteattr(printable(category.name))} background={quoteattr(css_colour(category.id))}/>"
        for category in labels.source.categories
    ]
    return "\n".join(
        [
            "<View>",
            f'  <Image name="{TO_NAME}" value="$image" zoom="true"/>',
            f'  <BrushLabels name="{FROM_NAME}" toName="{TO_NAME}">',
            *lines,
            "  </BrushLabels>",
            "</View>",
            "",
        ]
    )
