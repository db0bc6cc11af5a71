from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree

import numpy as np
import pytest

from pipeline.export.errors import ExportError
from pipeline.export.formats import label_studio
from pipeline.export.formats.base import Options
from pipeline.export.formats.label_studio import write_label_studio
from pipeline.export.target import whole_folder
from pipeline.storage.uris import Uri, UriText
from tests.export.export_cases import CATEGORIES, EMPTY, MASKS, Picture, awkward_pictures, labels_of, write_output
from tests.export.outlines.test_brush_rle import decode_brush

FULL = MASKS["full"]


def export(tmp_path: Path, pictures: list[Picture]) -> Path:
    out = tmp_path / "studio"
    with whole_folder(Uri(str(out)), overwrite=False) as folder:
        assert write_label_studio(labels_of(write_output(tmp_path / "out", pictures)), folder) == ()
    return out


def tasks_in(out: Path) -> list[dict[str, Any]]:
    return [task for file in sorted((out / "tasks").iterdir()) for task in json.loads(file.read_text("utf-8"))]


def test_masks_come_back(tmp_path: Path) -> None:
    pictures = awkward_pictures()
    tasks = {task["data"]["image_id"]: task for task in tasks_in(export(tmp_path, pictures))}
    assert tasks.keys() == {picture.id for picture in pictures if picture.masks is not None}
    for picture in pictures:
        if picture.masks is None:
            continue
        (prediction,) = tasks[picture.id]["predictions"]
        for region, mask in zip(prediction["result"], picture.masks, strict=True):
            size = region["original_height"], region["original_width"]
            assert size == mask.shape
            alpha = decode_brush(region["value"]["rle"], size)[..., 3]
            np.testing.assert_array_equal(alpha, mask * np.uint8(255))


def test_fields(tmp_path: Path) -> None:
    out = export(tmp_path, [Picture(1, [EMPTY, FULL, FULL], scores=[0.9, 0.5, 0.25], labels=[0, 1, 0])])
    (task,) = tasks_in(out)
    assert task["data"] == {"image": "s3://pictures/1.jpg", "image_id": 1}
    (prediction,) = task["predictions"]
    assert (prediction["model_version"], prediction["score"]) == ("tiny (a.safetensors)", 0.375)
    first, second = prediction["result"]
    assert (first["score"], second["score"]) == (0.5, 0.25)
    assert (first["type"], first["value"]["format"]) == ("brushlabels", "rle")
    assert [region["value"]["brushlabels"] for region in (first, second)] == [["cat"], [CATEGORIES[0].name]]
    assert first["id"] != second["id"]
    config = ElementTree.parse(out / "labeling_config.xml").getroot()
    image, brush = config.findall("*")
    assert (image.tag, image.attrib["name"], image.attrib["value"]) == ("Image", first["to_name"], "$image")
    assert (brush.tag, brush.attrib["name"], brush.attrib["toName"]) == ("BrushLabels", first["from_name"], "image")
    assert [label.attrib["value"] for label in brush] == [category.name for category in CATEGORIES]


def test_images_without_labels(tmp_path: Path) -> None:
    (task,) = tasks_in(export(tmp_path, [Picture(1, []), Picture(2, None)]))
    assert task["predictions"] == [{"model_version": "tiny (a.safetensors)", "result": []}]


def test_files_of_limited_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_studio, "FILE_BYTES", 1000)
    out = export(tmp_path, [Picture(i, [FULL] * 2) for i in range(7)])
    sizes = [file.stat().st_size for file in (out / "tasks").iterdir()]
    assert len(sizes) > 1
    assert max(sizes) < 1100
    assert sorted(task["data"]["image_id"] for task in tasks_in(out)) == list(range(7))


def test_an_image_that_could_not_be_shown(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="image 1 came as bytes"):
        export(tmp_path, [Picture(1, [FULL], uri=None)])


KEYS = ["a/b.jpg", "a b+c&d=e.jpg", "100%25#?;.jpg", "ü/\u00e9'\"[x]*.jpg", "x:y@z.jpg"]


class TestPrefix:
    def exported(self, tmp_path: Path, prefix: str, uris: list[str], root: str) -> tuple[list[str], list[str], str]:
        """Where the images of the tasks are, in the order of their ids; the remarks; the README."""
        pictures = [Picture(number, [FULL], uri=uri) for number, uri in enumerate(uris)]
        annotations = write_output(tmp_path / "out", pictures, image_root=root)
        options = Options(image_prefix=UriText(prefix))
        with whole_folder(Uri(str(tmp_path / "studio")), overwrite=False) as folder:
            remarks = write_label_studio(labels_of(annotations), folder, options)
        tasks = sorted((task["data"]["image_id"], task["data"]["image"]) for task in tasks_in(tmp_path / "studio"))
        return [image for _, image in tasks], list(remarks), (tmp_path / "studio" / "README.txt").read_text()

    @pytest.mark.parametrize("root", ["/data/pictures", "s3://pictures/some"])
    def test_local_files(self, tmp_path: Path, root: str) -> None:
        """As Label Studio's view reads the address: the parameter d of the query, decoded, below its document root."""
        prefix = "/data/local-files/?d=pictures/"
        images, remarks, readme = self.exported(tmp_path, prefix, [f"{root}/{key}" for key in KEYS], root)
        for image, key in zip(images, KEYS, strict=True):
            parts = urlsplit(f"http://localhost{image}")
            assert (parts.path, parts.fragment) == ("/data/local-files/", "")
            assert parse_qs(parts.query, strict_parsing=True) == {"d": [f"pictures/{key}"]}
        assert images[0] == "/data/local-files/?d=pictures/a/b.jpg", "slashes stay, as Label Studio writes them"
        assert remarks == [f"the first task shows {images[0]}"]
        assert "nothing to change" in readme
        assert "--image-prefix" not in readme

    def test_a_web_server(self, tmp_path: Path) -> None:
        uris = [f"/pictures/{key}" for key in KEYS]
        images, _, _ = self.exported(tmp_path, "https://host/pics/", uris, "/pictures")
        for image, key in zip(images, KEYS, strict=True):
            parts = urlsplit(image)
            assert (unquote(parts.path), parts.query, parts.fragment) == (f"/pics/{key}", "", "")

    def test_keys_of_a_storage_are_literal(self, tmp_path: Path) -> None:
        images, _, _ = self.exported(tmp_path, "s3://bucket/", [f"/pictures/{key}" for key in KEYS], "/pictures")
        assert images == [f"s3://bucket/{key}" for key in KEYS]

    @pytest.mark.parametrize("root", ["/pictures", ""])
    def test_images_elsewhere_are_said(self, tmp_path: Path, root: str) -> None:
        uris = ["/else where/a.jpg", "https://host/b.jpg"]
        images, remarks, _ = self.exported(tmp_path, "/data/local-files/?d=", uris, root)
        assert images == ["/data/local-files/?d=/else%20where/a.jpg", "https://host/b.jpg"]
        _, remark = remarks
        assert remark.startswith(
            f"images that do not lie below {f'the image root {root}' if root else 'an image root'}: 2"
        )

    def test_no_image(self, tmp_path: Path) -> None:
        pictures = [Picture(1, [FULL], uri=None)]
        options = Options(image_prefix=UriText("x"))
        with (
            pytest.raises(ExportError, match="image 1 came as bytes"),
            whole_folder(Uri(str(tmp_path / "studio")), overwrite=False) as folder,
        ):
            write_label_studio(labels_of(write_output(tmp_path / "out", pictures)), folder, options)


def test_without_a_prefix_the_readme_says_what_local_paths_need(tmp_path: Path) -> None:
    out = export(tmp_path, [Picture(1, [FULL])])
    assert "--image-prefix" in (out / "README.txt").read_text()
