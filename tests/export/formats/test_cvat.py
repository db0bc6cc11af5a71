"""CVAT's XML, read back as CVAT reads it."""

from __future__ import annotations

import io
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from pipeline.annotations.class_thresholds import Selection
from pipeline.export.formats.cvat import write_cvat
from tests.export.export_cases import (
    CATEGORIES,
    EMPTY,
    MASKS,
    Mask,
    Picture,
    any_mask,
    awkward_pictures,
    labels_of,
    write_output,
)


def exported(uri: str, selection: Selection | None = None) -> ElementTree.Element:
    file = io.BytesIO()
    write_cvat(labels_of(uri, selection), file)
    return ElementTree.fromstring(file.getvalue())


def decoded(mask: ElementTree.Element, image: ElementTree.Element) -> Mask:
    left, top, width, height = (int(mask.attrib[name]) for name in ("left", "top", "width", "height"))
    counts = [int(text) for text in mask.attrib["rle"].split(",")]
    assert sum(counts) == width * height
    assert min(counts[1:]) > 0
    box = np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(height, width)
    whole = np.zeros((int(image.attrib["height"]), int(image.attrib["width"])), bool)
    whole[top : top + height, left : left + width] = box
    return whole


def check(uri: str, pictures: list[Picture]) -> None:
    by_name = {image.attrib["name"]: image for image in exported(uri).iter("image")}
    assert by_name.keys() == {f"{picture.id}.jpg" for picture in pictures if picture.masks is not None}
    for picture in pictures:
        image = by_name.get(f"{picture.id}.jpg")
        masks = [mask for mask in picture.masks or () if mask.any()]
        for element, mask in zip([] if image is None else image.iter("mask"), masks, strict=True):
            assert image is not None
            np.testing.assert_array_equal(decoded(element, image), mask)


def test_masks_come_back(tmp_path: Path) -> None:
    pictures = awkward_pictures()
    check(write_output(tmp_path / "out", pictures[:5], pictures[5:]), pictures)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(any_mask)
def test_any_mask(tmp_path_factory: pytest.TempPathFactory, mask: Mask) -> None:
    pictures = [Picture(1, [mask])]
    check(write_output(tmp_path_factory.mktemp("any") / "out", pictures), pictures)


def test_fields(tmp_path: Path) -> None:
    root = exported(write_output(tmp_path / "out", [Picture(4, [EMPTY, MASKS["full"]], scores=[0.9, 0.5])]))
    assert root.findtext("version") == "1.1"
    assert [name.text for name in root.findall("meta/task/labels/label/name")] == [c.name for c in CATEGORIES]
    (image,) = root.findall("image")
    assert image.attrib == {"id": "0", "name": "4.jpg", "width": "4", "height": "5"}
    (mask,) = image.findall("mask")
    assert mask.attrib["label"] == "cat"
    assert mask.attrib["source"] == "auto"
    assert mask.attrib["rle"] == "0, 20"
    assert [(a.attrib["name"], a.text) for a in mask] == [("score", "0.5")]


def test_names_are_escaped(tmp_path: Path) -> None:
    uri = 's3://pictures/"<&>\x01é\n.jpg'
    root = exported(write_output(tmp_path / "out", [Picture(1, [MASKS["full"]], uri=uri)]))
    (image,) = root.findall("image")
    assert image.attrib["name"] == '"<&>\ufffdé\n.jpg'
    assert root.find("image/mask").attrib["label"] == CATEGORIES[0].name  # type: ignore[union-attr]


def test_where_they_come_from(tmp_path: Path) -> None:
    root = exported(write_output(tmp_path / "out", [Picture(1, [])]), Selection(0.25, {"cat": 0.5}))
    assert root.findtext("meta/maskfleet/min_score") == "0.25"
    assert root.findtext("meta/maskfleet/class_thresholds") == '{"cat": 0.5}'
    assert root.findtext("meta/maskfleet/weights_sha256") == "a" * 64
