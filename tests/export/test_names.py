from __future__ import annotations

from contextlib import closing

import pytest

from pipeline.export.names import UniqueNames, image_path


@pytest.mark.parametrize(
    ("uri", "root", "path"),
    [
        pytest.param("s3://b/set/a/1.jpg", "s3://b/set", "a/1.jpg", id="below the root"),
        pytest.param("s3://b/set/a/1.jpg", "s3://b/set/", "a/1.jpg", id="root with a slash"),
        pytest.param("s3://b/settee/1.jpg", "s3://b/set", "b/settee/1.jpg", id="beside the root"),
        pytest.param("s3://b/set/1.jpg", None, "b/set/1.jpg", id="no root"),
        pytest.param("/data/x/1.jpg", "/data", "x/1.jpg", id="local"),
        pytest.param("/data/a b/1.jpg", "file:///data/a%20b", "1.jpg", id="root as a file URI"),
        pytest.param("photos/1.jpg", "photos", "1.jpg", id="relative root"),
        pytest.param("/data/../etc/./1.jpg", None, "data/etc/1.jpg", id="dots"),
        pytest.param("https://host/", "https://host/", "image", id="nothing left"),
        pytest.param(None, "/data", "17", id="no URI"),
    ],
)
def test_path(uri: str | None, root: str | None, path: str) -> None:
    assert image_path(17, uri, root) == path


def test_an_id_climbs_nowhere() -> None:
    assert image_path("../../etc/passwd", None, None) == "etc/passwd"


def test_names_that_are_taken() -> None:
    with closing(UniqueNames()) as names:
        taken = [names.take(name, key) for key, name in enumerate(["a/b", "a", "a/b", "a/b", "c"])]
    assert len(set(taken)) == 5
    assert [taken[0], taken[1], taken[4]] == ["a/b", "a", "c"]
    assert taken[2].startswith("a/b_")
