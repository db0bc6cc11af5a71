"""CVAT for images 1.1: one XML file with masks.

A mask is a box in pixels (``left``, ``top``, ``width``, ``height``) and the runs of the pixels in it, row by row,
zeros first. CVAT finds an image by its ``name``, which must be its path in the task; what it does not know as an
attribute of a label, such as the score here, it passes over.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import BinaryIO
from xml.sax.saxutils import XMLGenerator

import numpy as np

from pipeline.export.labels import ImageLabels, Labels
from pipeline.export.markup import css_colour, printable
from pipeline.export.outlines.crops import Crop, row_major_toggles


def write_cvat(labels: Labels, file: BinaryIO) -> Sequence[str]:
    """``annotations.xml``, to be uploaded to a task whose labels have the same names."""
    xml = _Xml(file)
    xml.startDocument()
    xml.open("annotations")
    xml.leaf("version", "1.1")
    xml.open("meta")
    _write_meta(xml, labels)
    xml.close("meta")
    names = [category.name for category in labels.source.categories]
    for number, image in enumerate(labels.images()):
        _write_image(xml, number, image, names)
    xml.close("annotations")
    xml.endDocument()
    return ()


class _Xml(XMLGenerator):
    """An XML file written from the top to the bottom, one element a line."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, encoding="utf-8")

    def open(self, tag: str, **attributes: str) -> None:
        self.startElement(tag, {name: printable(value) for name, value in attributes.items()})  # type: ignore[arg-type]
        self.ignorableWhitespace("\n")

    def close(self, tag: str) -> None:
        self.endElement(tag)
        self.ignorableWhitespace("\n")

    def leaf(self, tag: str, text: str, **attributes: str) -> None:
        self.startElement(tag, attributes)  # type: ignore[arg-type]
        self.characters(printable(text))
        self.close(tag)


def _write_meta(xml: _Xml, labels: Labels) -> None:
    xml.open("task")
    xml.leaf("name", labels.source.provenance["model"])
    xml.leaf("size", str(labels.source.counts.annotated))
    xml.leaf("mode", "annotation")
    xml.open("labels")
    for category in labels.source.categories:
        xml.open("label")
        xml.leaf("name", category.name)
        xml.leaf("color", css_colour(category.id))
        xml.leaf("type", "mask")
        xml.open("attributes")
        xml.close("attributes")
        xml.close("label")
    xml.close("labels")
    xml.close("task")
    xml.open("maskfleet")
    for name, value in labels.report().items():
        xml.leaf(name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
    xml.close("maskfleet")


def _write_image(xml: _Xml, number: int, image: ImageLabels, names: list[str]) -> None:
    height, width = image.image.size
    xml.open("image", id=str(number), name=image.image.file_name, width=str(width), height=str(height))
    found = zip(image.categories.tolist(), image.scores.tolist(), strict=True)
    for index, (category, score) in enumerate(found):
        mask = _mask_attributes(image.crop(index))
        xml.open("mask", label=names[category], source="auto", occluded="0", z_order="0", **mask)
        xml.leaf("attribute", repr(score), name="score")
        xml.close("mask")
    xml.close("image")


def _mask_attributes(crop: Crop) -> dict[str, str]:
    height, width = crop.pixels.shape
    edges = np.append(0, row_major_toggles(crop.pixels))
    if edges[-1] < crop.pixels.size:
        edges = np.append(edges, crop.pixels.size)
    return {
        "rle": ", ".join(map(str, np.diff(edges).tolist())),
        "left": str(crop.left),
        "top": str(crop.top),
        "width": str(width),
        "height": str(height),
    }
