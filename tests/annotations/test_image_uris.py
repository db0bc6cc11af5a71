from __future__ import annotations

import pytest

from pipeline.annotations.image_uris import image_path, picture_uri
from pipeline.storage.uris import AccessDenied, Uri, UriText


@pytest.mark.parametrize(
    ("uri", "root", "path"),
    [
        pytest.param("s3://b/set/a/1.jpg", "s3://b/set", "a/1.jpg", id="below the root"),
        pytest.param("s3://b/set/a/1.jpg", "s3://b/set/", "a/1.jpg", id="root with a slash"),
        pytest.param("s3://b/settee/1.jpg", "s3://b/set", "b/settee/1.jpg", id="beside the root"),
        pytest.param("s3://b/set/1.jpg", None, "b/set/1.jpg", id="no root"),
        pytest.param("/data/x/1.jpg", "/data", "x/1.jpg", id="local"),
        pytest.param("/data/1.jpg", "/", "data/1.jpg", id="root of the file system"),
        pytest.param("photos/1.jpg", "/data", "photos/1.jpg", id="a label"),
        pytest.param("/data/../etc/./1.jpg", None, "data/etc/1.jpg", id="dots"),
        pytest.param("https://host/", "https://host/", "image", id="nothing left"),
        pytest.param(None, "/data", "17", id="no URI"),
    ],
)
def test_path(uri: str | None, root: str | None, path: str) -> None:
    assert image_path(17, uri, None if root is None else Uri(root)) == path


def test_an_id_climbs_nowhere() -> None:
    assert image_path("../../etc/passwd", None, None) == "etc/passwd"


@pytest.mark.parametrize(
    ("uri", "root", "place"),
    [("/data/1.jpg", "/moved", "/data/1.jpg"), ("1.jpg", "/moved", "/moved/1.jpg"), ("1.jpg", None, "1.jpg")],
)
def test_place(uri: str, root: str | None, place: str) -> None:
    assert picture_uri(UriText(uri), None if root is None else Uri(root)).secret_text == place


def test_a_label_that_climbs_out_of_the_root() -> None:
    with pytest.raises(AccessDenied):
        picture_uri(UriText("../1.jpg"), Uri("/moved"))
