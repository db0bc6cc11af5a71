from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pipeline.annotations.failure import ImageFailure
from pipeline.annotations.pictures import PictureSource
from pipeline.storage.uris import Uri, UriText
from pipeline.train.data.coco_source import read_coco
from pipeline.train.data.labelled import load_sample
from testing.s3_server import S3Server
from tests.train.data_cases import annotation, empty_images, write_coco
from tests.train.sample_cases import assert_sound

PICTURES = PictureSource()


def test_a_sample_is_the_picture_with_its_objects(tmp_path: Path) -> None:
    uri = write_coco(tmp_path, [annotation(1, 1, [4, 5, 10, 8])])
    ((image,), _, _) = read_coco(Uri(uri), Uri(str(tmp_path)))
    sample = load_sample(image, PICTURES)
    assert not isinstance(sample, ImageFailure)
    assert_sound(sample)
    assert (sample.pixels == 1).all()
    assert sample.boxes.tolist() == [[4, 5, 14, 13]]


def test_a_missing_picture_is_a_value(tmp_path: Path) -> None:
    (image,) = empty_images(tmp_path, 1)
    gone = replace(image, uri=UriText(str(tmp_path / "gone.png")))
    found = load_sample(gone, PICTURES)
    assert isinstance(found, ImageFailure)
    assert found.code == "not_found"


def test_objects_and_pictures_may_lie_in_s3(tmp_path: Path, s3: S3Server) -> None:
    uri = write_coco(tmp_path, [annotation(1, 1, [4, 5, 10, 8])])
    uri = s3.put("bucket", "set/instances.json", Path(uri).read_bytes())
    s3.put("bucket", "set/images/1.png", (tmp_path / "1.png").read_bytes())
    ((image,), _, _) = read_coco(Uri(uri), Uri("s3://bucket/set/images"))
    sample = load_sample(image, PICTURES)
    assert not isinstance(sample, ImageFailure)
    assert sample.boxes.tolist() == [[4, 5, 14, 13]]
