"""Label Studio pre-annotations: tasks with brush masks as predictions, to be corrected by people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from pipeline.export.errors import ExportError
from pipeline.export.formats.base import NO_OPTIONS, Options, flag
from pipeline.export.formats.coco import to_json
from pipeline.export.labels import ImageInfo, ImageLabels, Labels
from pipeline.export.markup import css_colour, printable
from pipeline.export.outlines.brush_rle import encode_brush
from pipeline.export.target import Folder
from pipeline.storage.uris import HTTP_PORTS, UriText

TO_NAME, FROM_NAME = "image", "label"
# Label Studio reads a file of tasks as a whole, and refuses uploads above 250 MB.
FILE_BYTES = 64_000_000

_README = """Label Studio pre-annotations

1. Make a project and paste labeling_config.xml as its labelling interface (Settings > Labeling Interface > Code).
2. Import the files in tasks/, one after the other.

{images}

Masks are exact. The score of a prediction is the mean of its masks' scores; the lowest are the ones to look at first.
"""
_AS_THEY_ARE = """\
Each task shows the image at its URI. s3://, gs:// and azure-blob:// URIs need a cloud storage of the project; local
paths need Label Studio's local file serving, and the export's --image-prefix, such as "/data/local-files/?d="."""
_WITH_PREFIX = """\
Each task shows the image at the prefix that the export was given, with the path below the image root behind it: there
is nothing to change in the files. "/data/local-files/?d=" needs Label Studio's local file serving, and a local storage
of the project that holds the images; s3://, gs:// and azure-blob:// need a cloud storage of the project."""


def write_label_studio(labels: Labels, folder: Folder, options: Options = NO_OPTIONS) -> Sequence[str]:
    """``tasks/tasks-00001.json`` and so on, ``labeling_config.xml`` and ``README.txt``.

    Returns:
        What a prefix makes of the first image, and how many images it does not suit.

    Raises:
        ExportError: an image without a URI: Label Studio could not show it.
    """
    places = _Places(options.image_prefix)
    images = _AS_THEY_ARE if options.image_prefix is None else _WITH_PREFIX
    folder.put("README.txt", _README.format(images=images).encode())
    folder.put("labeling_config.xml", _labeling_config(labels).encode())
    for number, tasks in enumerate(_files(labels, places), 1):
        folder.put(f"tasks/tasks-{number:05d}.json", b"[\n" + b",\n".join(tasks) + b"\n]\n")
    return places.remarks(labels)


class _Places:
    """Where Label Studio finds images."""

    def __init__(self, prefix: UriText | None) -> None:
        self._prefix = prefix
        self._outside = 0
        self._first: str | None = None

    def of(self, image: ImageInfo) -> str:
        """The prefix and the path: in URLs percent-encoded, since Label Studio decodes them, but in keys literally."""
        if image.uri is None:
            raise ExportError(f"image {image.id!r} came as bytes, without a URI: Label Studio could not show it")
        if image.file_name != image.path:
            raise ExportError(f"image {image.id!r} is in a tar shard: Label Studio could not show it")
        if self._prefix is None:
            return image.uri
        place = self._behind_prefix(image, self._prefix.secret_text)
        self._first = self._first or place
        return place

    def _behind_prefix(self, image: ImageInfo, prefix: str) -> str:
        is_uri = "://" in image.path
        self._outside += is_uri or image.path.startswith("/")
        if is_uri:
            return image.path
        scheme, is_storage, _ = prefix.partition("://")
        takes_keys = is_storage and scheme.lower() not in HTTP_PORTS
        return prefix + (image.path if takes_keys else quote(image.path))

    def remarks(self, labels: Labels) -> Sequence[str]:
        # Whether a slash is missing between them is soon seen, and nothing else would tell.
        first = () if self._first is None else (f"the first task shows {UriText(self._first)}",)
        if not self._outside:
            return first
        root = f"the image root {labels.source.image_root}" if labels.source.image_root else "an image root"
        return (
            *first,
            f"images that do not lie below {root}: {self._outside:,}; behind {flag('image_prefix')} stands their whole "
            "path, and a URI is as it was",
        )


def _files(labels: Labels, places: _Places) -> Iterator[list[bytes]]:
    """Tasks as JSON, as many as a file holds."""
    tasks: list[bytes] = []
    size_bytes = 0
    for image in labels.images():
        task = to_json(_task(image, places.of(image.image), labels))
        if tasks and size_bytes + len(task) > FILE_BYTES:
            yield tasks
            tasks, size_bytes = [], 0
        tasks.append(task)
        size_bytes += len(task)
    yield tasks


def _task(image: ImageLabels, place: str, labels: Labels) -> dict[str, Any]:
    prediction: dict[str, Any] = {
        "model_version": labels.source.provenance["model"],
        "result": [_region(image, i, labels) for i in range(len(image))],
    }
    if len(image):
        prediction["score"] = float(image.scores.mean())
    return {"data": {"image": place, "image_id": image.image.id}, "predictions": [prediction]}


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
