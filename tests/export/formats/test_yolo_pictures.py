"""YOLO exports with their pictures: as links or copies, split in two, and what becomes of those that cannot be read."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import uuid
from pathlib import Path
from typing import Any

import fsspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pipeline.annotations.class_thresholds import Selection
from pipeline.export.errors import ExportError
from pipeline.export.formats.base import Options
from pipeline.export.formats.yolo import is_for_validation
from pipeline.export.run import Export, export
from pipeline.storage.uris import Uri
from tests.export.export_cases import MASKS, Picture, blobs, jpeg, output_with_files, unhurried, write_output
from tests.export.formats.test_yolo import ultralytics_images, ultralytics_label

FULL = MASKS["full"]
COPY, LINK = Options(images="copy"), Options(images="link")


def yolo(annotations: Uri, out: Path | str, options: Options, overwrite: bool = False) -> str:
    return export(Export(annotations, "yolo-seg", Uri(str(out)), Selection(0.01), overwrite, options)).text()


def table(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


class TestCopies:
    def test_byte_by_byte_from_every_place(self, tmp_path: Path, s3: object) -> None:
        content = {f"s3://bucket/{uuid.uuid4().hex}/a b%20?#.jpg": jpeg(20, 10), str(tmp_path / "ü.png"): b"any bytes"}
        for uri, data in content.items():
            filesystem, path = fsspec.core.url_to_fs(uri) if uri.startswith("s3") else (None, uri)
            if filesystem is None:
                Path(path).write_bytes(data)
            else:
                filesystem.pipe_file(uri.removeprefix("s3://"), data)
        pictures = [Picture(i, [FULL], uri=uri) for i, uri in enumerate(content)]
        text = yolo(write_output(tmp_path / "out", pictures, image_root="", images={}), tmp_path / "yolo", COPY)
        rows = table(tmp_path / "yolo" / "images.csv")
        assert {row["image_uri"]: (tmp_path / "yolo" / row["image"]).read_bytes() for row in rows} == content
        for row in rows:
            place = tmp_path / "yolo" / row["image"]
            assert not place.is_symlink()
            assert ultralytics_label(str(place)) == str(tmp_path / "yolo" / row["label"])
            assert os.path.isfile(ultralytics_label(str(place)))
        assert text.startswith("2 images, 2 labels")
        assert "cannot be read" not in text

    def test_into_an_object_store(self, tmp_path: Path, s3: object) -> None:
        out = f"s3://bucket/{uuid.uuid4().hex}"
        annotations = output_with_files(tmp_path, 3)
        yolo(annotations, out, COPY)
        filesystem, path = fsspec.core.url_to_fs(out, skip_instance_cache=True)
        for number in range(3):
            assert filesystem.cat_file(f"{path}/images/{number}.jpg") == jpeg(64, 40)
            assert filesystem.exists(f"{path}/labels/{number}.txt")

    def test_the_run_decides_what_may_be_read(self, tmp_path: Path) -> None:
        """Its allowed roots and its limit, as for every reader of its images."""
        (tmp_path / "in").mkdir()
        for name, size in (("in/a.jpg", 10), ("in/large.jpg", 5000), ("secret.jpg", 10)):
            (tmp_path / name).write_bytes(bytes(size))
        (tmp_path / "in" / "way_out.jpg").symlink_to(tmp_path / "secret.jpg")
        names = ("in/a.jpg", "in/large.jpg", "secret.jpg", "in/way_out.jpg", "in/gone.jpg")
        pictures = [Picture(name, [FULL], uri=str(tmp_path / name)) for name in names]
        pictures.append(Picture("bytes", [FULL], uri=None))
        images = {"allowed_roots": [str(tmp_path / "in")], "max_object_bytes": 1000}
        annotations = write_output(tmp_path / "out", pictures, image_root=str(tmp_path), images=images)
        for options in (COPY, LINK):
            out = tmp_path / f"yolo-{options.images}"
            text = yolo(annotations, out, options)
            assert text.startswith("1 image, 1 label;")
            assert "5 images whose pictures cannot be read" in text
            codes = {row["image_id"]: row["error_code"] for row in table(out / "left_out.csv")}
            assert codes == {
                "in/large.jpg": "too_large",
                "secret.jpg": "uri_not_allowed",
                "in/way_out.jpg": "uri_not_allowed",
                "in/gone.jpg": "not_found",
                "bytes": "no_uri",
            }
            assert "uri_not_allowed 2" in text
            assert "images left out with their 5 labels" in text
            assert [path.name for path in (out / "images").rglob("*.*")] == ["a.jpg"]
            assert [path.name for path in (out / "labels").rglob("*.*")] == ["a.txt"]
            assert [row["image_id"] for row in table(out / "images.csv")] == ["in/a.jpg"]
            record = json.loads((out / "export.json").read_text())
            assert (record["images"], record["labels"], record["unread_pictures"]) == (1, 1, 5)
            assert record["options"] == {"images": options.images}

    def test_no_picture_at_all_replaces_nothing(self, tmp_path: Path) -> None:
        annotations = output_with_files(tmp_path, 2)
        yolo(annotations, tmp_path / "yolo", COPY)
        for file in (tmp_path / "pictures").iterdir():
            file.unlink()
        with pytest.raises(ExportError, match=r"not one picture can be read \(not_found 2\)"):
            yolo(annotations, tmp_path / "yolo", COPY, overwrite=True)
        assert (tmp_path / "yolo" / "images" / "0.jpg").read_bytes() == jpeg(64, 40)

    def test_a_large_one(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("pipeline.export.formats.yolo._LARGE_BYTES", 100)
        yolo(output_with_files(tmp_path, 2), tmp_path / "yolo", COPY)
        assert (tmp_path / "yolo" / "images" / "1.jpg").read_bytes() == jpeg(64, 40)

    def test_without_run_json(self, tmp_path: Path) -> None:
        annotations = output_with_files(tmp_path, 2)
        (tmp_path / "annotations" / "run.json").unlink()
        with pytest.raises(ExportError, match="--images none"):
            yolo(annotations, tmp_path / "yolo", COPY)


class TestLinks:
    def test_absolute_and_resolved(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        output_with_files(tmp_path, 2)
        (tmp_path / "alias").symlink_to(tmp_path / "pictures")
        uris = [str(tmp_path / "alias" / "0.jpg"), (tmp_path / "alias" / "1.jpg").as_uri()]
        pictures = [Picture(i, [FULL], uri=uri) for i, uri in enumerate(uris)]
        annotations = write_output(tmp_path / "out", pictures, image_root="", images={})
        monkeypatch.chdir(tmp_path)
        yolo(annotations, "yolo", LINK)
        places = [tmp_path / "yolo" / row["image"] for row in table(tmp_path / "yolo" / "images.csv")]
        targets = {os.readlink(place) for place in places}
        assert targets == {str((tmp_path / "pictures" / f"{i}.jpg").resolve()) for i in range(2)}

    def test_remote_ones_are_for_copy(self, tmp_path: Path) -> None:
        (tmp_path / "a.jpg").write_bytes(b"a")
        pictures = [Picture(i, [], uri=uri) for i, uri in enumerate([str(tmp_path / "a.jpg"), "s3://bucket/b.jpg"])]
        with pytest.raises(ExportError, match=r"s3://bucket/b.jpg is no local file.*--images copy"):
            yolo(write_output(tmp_path / "out", pictures, images={}), tmp_path / "yolo", LINK)
        assert not (tmp_path / "yolo").exists()

    def test_an_object_store_has_none(self, tmp_path: Path, s3: object) -> None:
        """Said before what is there is replaced."""
        out = f"s3://bucket/{uuid.uuid4().hex}"
        annotations = output_with_files(tmp_path, 2)
        yolo(annotations, out, COPY)
        with pytest.raises(ExportError, match="--images copy"):
            yolo(annotations, out, LINK, overwrite=True)
        filesystem, path = fsspec.core.url_to_fs(out, skip_instance_cache=True)
        assert filesystem.exists(f"{path}/images/0.jpg")

    def test_nothing_can_be_written_through_them(self, tmp_path: Path) -> None:
        """Ultralytics (`verify_image_label`) writes a JPEG anew whose last two bytes are not those of its end."""
        annotations = output_with_files(tmp_path, 3)
        whole = jpeg(64, 40)
        contents = [whole, whole + b"\0\0", whole[:-2]]
        for number, content in enumerate(contents):
            (tmp_path / "pictures" / f"{number}.jpg").write_bytes(content)
        text = yolo(annotations, tmp_path / "yolo", LINK)
        places = [tmp_path / "yolo" / "images" / f"{number}.jpg" for number in range(3)]
        assert [place.is_symlink() for place in places] == [True, False, False]
        assert [place.read_bytes() for place in places] == contents
        assert "JPEGs copied and not linked, because ultralytics may write over them: 2" in text

    def test_pictures_in_the_export_that_is_replaced(self, tmp_path: Path) -> None:
        """A model's labels for the pictures of an earlier export."""
        yolo(output_with_files(tmp_path, 2), tmp_path / "yolo", COPY)
        place = tmp_path / "yolo" / "images" / "0.jpg"
        annotations = write_output(tmp_path / "second", [Picture(0, [FULL], uri=str(place))], images={})
        with pytest.raises(ExportError, match="which this export replaces"):
            yolo(annotations, tmp_path / "yolo", LINK, overwrite=True)
        assert place.read_bytes() == jpeg(64, 40)


class TestSplit:
    def test_as_ultralytics_finds_it(self, tmp_path: Path) -> None:
        annotations = output_with_files(tmp_path, 30)
        out = tmp_path / "yolo"
        text = yolo(annotations, out, Options(images="link", val_fraction=0.25))
        content = yaml.safe_load((out / "data.yaml").read_text("utf-8"))
        parts = {part: ultralytics_images(out / content[part]) for part in ("train", "val")}
        assert all(os.path.isfile(ultralytics_label(image)) for images in parts.values() for image in images)
        names = {part: {int(Path(image).stem) for image in images} for part, images in parts.items()}
        # By hand, from the documented rule: the first 16 hexadecimal digits of 2**64.
        chosen = {n for n in range(30) if int(hashlib.sha256(b"%d" % n).hexdigest()[:16], 16) < 0.25 * 2**64}
        assert names == {"val": chosen, "train": set(range(30)) - chosen}
        assert f"{30 - len(chosen)} images for training, {len(chosen)} for validation" in text

    def test_without_images(self, tmp_path: Path) -> None:
        yolo(output_with_files(tmp_path, 4), tmp_path / "yolo", Options(val_fraction=0.5))
        for row in table(tmp_path / "yolo" / "images.csv"):
            part = "val" if is_for_validation(int(row["image_id"]), 0.5) else "train"
            assert row["image"] == f"images/{part}/{row['image_id']}.jpg"
            assert row["label"] == f"labels/{part}/{row['image_id']}.txt"
            assert (tmp_path / "yolo" / row["label"]).exists()

    def test_an_empty_part_is_said(self, tmp_path: Path) -> None:
        text = yolo(output_with_files(tmp_path, 2), tmp_path / "yolo", Options(val_fraction=1e-9))
        assert "one part of the split is empty" in text

    @unhurried
    @given(
        st.one_of(st.integers(), st.text(st.characters(exclude_categories=["Cs"]))), st.floats(0, 1), st.floats(0, 1)
    )
    def test_a_larger_part_holds_the_smaller(self, image_id: Any, one: float, other: float) -> None:
        small, large = sorted((one, other))
        assert is_for_validation(image_id, small) <= is_for_validation(image_id, large)

    def test_its_size(self) -> None:
        """Within five standard deviations of 10 %."""
        assert abs(sum(is_for_validation(n, 0.1) for n in range(10_000)) - 1000) < 5 * 30

    @pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
    def test_no_fraction(self, fraction: float) -> None:
        with pytest.raises(ExportError, match="above 0 and below 1"):
            Options(val_fraction=fraction)


def test_what_ultralytics_reads_otherwise_is_said(tmp_path: Path) -> None:
    files = {"a.gif": b"GIF89a...", "b.jpg": jpeg(64, 40, orientation=6), "c.jpg": jpeg(64, 40)}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    pictures = [
        Picture(name, blobs(40, 64), uri=str(tmp_path / name), exif_orientation=6 if name == "b.jpg" else 1)
        for name in files
    ]
    for number, (images, unturned) in enumerate([({"apply_exif": False}, True), ({}, False)]):
        annotations = write_output(tmp_path / f"out{number}", pictures, image_root=str(tmp_path), images=images)
        for options in (COPY, LINK):
            text = yolo(annotations, tmp_path / f"yolo-{number}-{options.images}", options)
            assert "GIF and PPM pictures, which ultralytics does not read (convert them): 1" in text
            assert ("their labels do not fit: 1" in text) == unturned
