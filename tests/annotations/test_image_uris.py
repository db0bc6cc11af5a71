from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.annotations.image_uris import image_path, picture_uri
from pipeline.storage.uris import AccessDenied, Uri, UriText, resolve


@pytest.mark.parametrize(
    ("uri", "root", "path"),
    [
        pytest.param("s3://b/set/a/1.jpg", "s3://b/set", "a/1.jpg", id="below the root"),
        pytest.param("s3://b/set/a/1.jpg", "s3://b/set/", "a/1.jpg", id="root with a slash"),
        pytest.param("s3://b/settee/1.jpg", "s3://b/set", "s3://b/settee/1.jpg", id="beside the root"),
        pytest.param("s3://b/set/1.jpg", None, "s3://b/set/1.jpg", id="no root"),
        pytest.param("/data/x/1.jpg", "/data", "x/1.jpg", id="local"),
        pytest.param("/data/1.jpg", "/", "data/1.jpg", id="root of the file system"),
        pytest.param("file:///data/a%20b%2541.jpg", "/data", "a b%41.jpg", id="file URI"),
        pytest.param("file:///data/a%20b.jpg", "file:///data", "a b.jpg", id="file URI below one"),
        pytest.param("/data/a b.jpg", "file:///data/", "a b.jpg", id="path below a file URI"),
        pytest.param("file:///data/%ff.jpg", "/data", "file:///data/%ff.jpg", id="a name that is not UTF-8"),
        pytest.param("file:///other/a.jpg", "/data", "file:///other/a.jpg", id="file URI beside the root"),
        pytest.param("photos/1.jpg", "/data", "photos/1.jpg", id="a label"),
        pytest.param("/data/../etc/./1.jpg", None, "/data/../etc/./1.jpg", id="dots"),
        pytest.param("https://host/", "https://host/", "https://host/", id="nothing left"),
        pytest.param(None, "/data", "17", id="no URI"),
    ],
)
def test_path(uri: str | None, root: str | None, path: str) -> None:
    assert image_path(17, uri, None if root is None else Uri(root)) == path


def test_an_id_climbs_nowhere() -> None:
    assert image_path("../../etc/passwd", None, None) == "%2E%2E%2F%2E%2E%2Fetc%2Fpasswd"
    assert image_path("a//b", None, None) != image_path("a/b", None, None) == "a/b"


ODD_KEYS = {
    "a/b.jpg": "a/b.jpg",
    "a//b.jpg": "a//b.jpg",
    "x?y#z.jpg": "x?y#z.jpg",
    "c%20d.jpg": "c%20d.jpg",
    "x/../y.jpg": "x/../y.jpg",
    "ü b.jpg": "ü b.jpg",
    "./x.jpg": "s3://b/set/./x.jpg",
    "../x.jpg": "s3://b/set/../x.jpg",
    "/x.jpg": "s3://b/set//x.jpg",
    "s3://inner/k.jpg": "s3://b/set/s3://inner/k.jpg",
}


@pytest.mark.parametrize(("key", "name"), ODD_KEYS.items())
def test_odd_keys(key: str, name: str) -> None:
    assert image_path(1, f"s3://b/set/{key}", Uri("s3://b/set")) == name


_PARTS = st.lists(st.sampled_from(["a", "b.jpg", ".", "..", "", "s3:", "file:", "c%20d", "?", "ü"]), min_size=1)


@pytest.mark.parametrize("root", ["s3://b/set", "/data", "file:///data"])
@given(parts=_PARTS)
def test_a_name_joined_with_the_root_is_the_image(root: str, parts: list[str]) -> None:
    uri = Uri(root).below("/".join(parts))
    assert resolve(image_path(1, uri, Uri(root)), Uri(root)).secret_text == uri


@pytest.mark.parametrize(
    ("uri", "root", "place"),
    [("/data/1.jpg", "/moved", "/data/1.jpg"), ("1.jpg", "/moved", "/moved/1.jpg"), ("1.jpg", None, "1.jpg")],
)
def test_place(uri: str, root: str | None, place: str) -> None:
    assert picture_uri(UriText(uri), None if root is None else Uri(root)).secret_text == place


def test_a_label_that_climbs_out_of_the_root() -> None:
    with pytest.raises(AccessDenied):
        picture_uri(UriText("../1.jpg"), Uri("/moved"))
