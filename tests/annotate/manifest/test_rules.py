from __future__ import annotations

import contextlib

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.annotate.manifest.rules import ManifestError, check_uris, check_uris_as_ids, is_relative
from pipeline.storage.uris import Uri, UriError, UriText, resolve


@pytest.mark.parametrize(
    ("uri", "root"),
    [
        ("https://host/a.jpg?X-Amz-Signature=secret", None),
        ("HTTP://host/a.jpg?secret", "/root"),
        ("https://user:secret@host/a.jpg", None),
        ("https://user:sec/secret@host/a.jpg", None),
        ("https://user:1#secret@host/a.jpg", None),
        ("https://secret@host/a.jpg", None),
        ("https://host/\n?secret", None),
        ("simplecache::https://host/a.jpg?secret", None),
        ("a.jpg?secret", "https://host/root"),
        ("https://host/a.jpg#secret", None),
        ("https://host/a.jpg;sig=secret", None),
        (" https://host/a.jpg?sig=secret", "/root"),
        ("\thttps://host/a.jpg?sig=secret", "/root"),
        ("https:/host/a.jpg?sig=secret", "/root"),
        ("https:\\\\host\\a.jpg?sig=secret", "/root"),
        ("https%3A//host/a.jpg?sig=secret", "/root"),
        ("//host/a.jpg?sig=secret", None),
        ("az://box/a.jpg?sig=secret", None),
        ("gs://bucket/a.jpg?X-Goog-Signature=secret", None),
        ("webhdfs://host:1/a.jpg?delegation=secret", None),
        ("github://user:secret@repo/a.jpg", None),
        ("file://user:secret@localhost/a.jpg", None),
        ("user:secret://host/a.jpg", None),
        ("ftp://user:secret@host/a.jpg", None),
        ("s3://KEY:secret@bucket/a.jpg", None),
        ("abfs://user:secret@account/a.jpg", None),
        ("abfs://box@account/a.jpg?sig=secret", None),
    ],
)
def test_uris_that_hold_secrets_are_no_ids(uri: str, root: str | None) -> None:
    with pytest.raises(ManifestError, match=r"row 2: .* give the manifest an id column") as raised:
        check_uris_as_ids(pa.array([None, "/a", uri]), root and Uri(root), lambda index: f"row {index}")
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("uri", "root"),
    [
        ("s3://bucket/a?b@c.jpg", None),
        ("gs://bucket/a?b@c.jpg", "https://host/root"),
        ("abfs://box@account/a.jpg", None),
        ("/data/a?b@c.jpg", "https://host/root"),
        ("a?b@c.jpg", None),
        ("a?b@c.jpg", "s3://bucket"),
        ("../a?b.jpg", "s3://bucket"),
        ("https://host/@user/a%3Fb.jpg", None),
        ("@user/a.jpg", "https://host/root"),
        (None, "https://host/root"),
    ],
)
def test_other_uris_are(uri: str | None, root: str | None) -> None:
    check_uris_as_ids(pa.array([uri], pa.string()), root and Uri(root), str)


PARTS = [*"ab:/\\@?#&;=.%[] \t\n+-_1", "%3A", "sig=", "https", "s3", "://", "gs://", "file://", "https://h/", "//"]
URLISH = st.lists(st.sampled_from(PARTS), max_size=20).map("".join)


@settings(max_examples=2000)
@given(URLISH | st.text())
def test_what_is_an_id_is_shown_whole(uri: str) -> None:
    with contextlib.suppress(ManifestError):
        check_uris_as_ids(pa.array([uri.encode("utf-8", "replace").decode()]), None, str)
        assert str(UriText(uri)) == uri


@given(URLISH)
def test_relative_is_what_a_root_is_put_before(uri: str) -> None:
    root = Uri("s3://bucket/root")
    if is_relative(pa.array([uri])).to_pylist()[0]:
        with contextlib.suppress(UriError):  # climbs out of the root
            assert resolve(uri, root).secret_text.startswith("s3://bucket/root/")
    else:
        assert resolve(uri, root).secret_text == uri


@pytest.mark.parametrize("root", ["/root", "s3://bucket/root", "https://host/root"])
@pytest.mark.parametrize(
    "uri",
    [
        "https:/host/a.jpg?sig=secret",
        "https:\\\\host\\a.jpg?sig=secret",
        "https:host/a.jpg?sig=secret",
        "https%3A//host/a.jpg?sig=secret",
        "\\\\host\\a.jpg?sig=secret",
        "\\/host/a.jpg?sig=secret",
        "s3:/key:secret@bucket/a.jpg",
    ],
)
def test_a_url_with_a_typing_error_is_no_path_below_the_root(uri: str, root: str) -> None:
    with pytest.raises(ManifestError, match=r"^line 2: .* query or credentials") as caught:
        check_uris(pa.array(["a.jpg", uri]), Uri(root), lambda index: f"line {index + 1}")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("uri", ["a?b#c.jpg", "12:30.jpg", "C:/a?b.jpg", "a\\b#1.jpg", "a..b", " a.jpg", "a%3Ab.jpg"])
def test_odd_paths_below_a_local_root_are_paths(uri: str) -> None:
    check_uris(pa.array([uri]), Uri("/root"), str)
    assert str(resolve(uri, Uri("/root"))) == f"/root/{uri}"
