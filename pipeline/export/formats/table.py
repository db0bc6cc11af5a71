"""All formats that there are, as the help shows them. What writes one is imported when it does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, BinaryIO

from pipeline.export.errors import ExportError
from pipeline.export.formats.base import FileFormat, FolderFormat, Format, Options, flag

if TYPE_CHECKING:
    from pipeline.export.labels import Labels
    from pipeline.export.target import Folder


def _coco(labels: Labels, file: BinaryIO, options: Options) -> Sequence[str]:
    from pipeline.export.formats.coco import write_coco

    return write_coco(labels, file, options)


def _coco_parts(labels: Labels, folder: Folder, options: Options) -> Sequence[str]:
    from pipeline.export.formats.coco import write_coco_parts

    return write_coco_parts(labels, folder, options)


def _coco_results(labels: Labels, file: BinaryIO, _: Options) -> Sequence[str]:
    from pipeline.export.formats.coco import write_coco_results

    return write_coco_results(labels, file)


def _coco_results_parts(labels: Labels, folder: Folder, options: Options) -> Sequence[str]:
    from pipeline.export.formats.coco import write_coco_results_parts

    return write_coco_results_parts(labels, folder, options)


def _yolo(labels: Labels, folder: Folder, options: Options) -> Sequence[str]:
    from pipeline.export.formats.yolo import write_yolo

    return write_yolo(labels, folder, options)


def _label_studio(labels: Labels, folder: Folder, options: Options) -> Sequence[str]:
    from pipeline.export.formats.label_studio import write_label_studio

    return write_label_studio(labels, folder, options)


def _cvat(labels: Labels, file: BinaryIO, _: Options) -> Sequence[str]:
    from pipeline.export.formats.cvat import write_cvat

    return write_cvat(labels, file)


_ALL: tuple[Format, ...] = (
    FileFormat(
        name="coco",
        about="a COCO data set of pseudo-labels, with scores and where they come from",
        takes=("images_per_file", "polygons"),
        write=_coco,
        write_parts=_coco_parts,
    ),
    FileFormat(
        name="coco-results",
        about="COCO results, for pycocotools' loadRes",
        takes=("images_per_file",),
        is_results=True,
        write=_coco_results,
        write_parts=_coco_results_parts,
    ),
    FolderFormat(
        name="yolo-seg", about="a polygon an object", takes=("images", "val_fraction"), is_lossy=True, write=_yolo
    ),
    FolderFormat(
        name="label-studio",
        about="pre-annotations with brush masks",
        takes=("image_prefix",),
        write=_label_studio,
    ),
    FileFormat(name="cvat", about="CVAT for images 1.1, with masks", write=_cvat),
)
FORMATS: Mapping[str, Format] = {format.name: format for format in _ALL}


def takers(option: str) -> str:
    """The formats that take an option, for people."""
    return ", ".join(format.name for format in _ALL if option in format.takes)


def check_options(format: str, options: Options) -> None:
    """Refuse what means nothing to a format.

    Raises:
        ExportError: naming the option, and the formats that take it.
    """
    for option in options.given():
        if option not in FORMATS[format].takes:
            raise ExportError(f"{flag(option)} means nothing to {format}: it is for {takers(option)}")
