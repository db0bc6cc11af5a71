from __future__ import annotations

import contextlib
import copy
import json
import pickle
import pprint
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.storage.access import AccessPolicy
from pipeline.storage.uris import AccessDenied, Uri, UriError, UriText, hide_column, hide_secrets, resolve


@pytest.mark.parametrize(
    ("uri", "safe"),
    [
        ("s3://bucket/a/b.jpg", "s3://bucket/a/b.jpg"),
        ("s3://AKIA:secret@bucket/a.jpg?region=x&secret=y", "s3://bucket/a.jpg"),
        ("s3://AKIA:sec/ret@bucket/a.jpg", "s3://..."),
        ("s3://AKIA:se?cret@bucket/a.jpg", "s3://bucket/a.jpg"),
        ("s3://bucket?sig=secret", "s3://bucket"),
        ("s3://bucket/what?#1;a=b&c.jpg", "s3://bucket/what?#1;a=b&c.jpg"),
        ("gs://bucket/what?#1.jpg", "gs://bucket/what?#1.jpg"),
        ("s3://bucket/a?b/c.jpg?X-Amz-Expires=9&X-Amz-Signature=secret", "s3://bucket/a"),
        ("https://host/a;sig=secret", "https://host/a"),
        (" https://host/a?sig=secret", "https://..."),
        ("u:secret@x://host/a", "://..."),
        ("https:/u:secret@host/a?sig=secret", "https:/host/a"),
        ("https:host/a?sig=secret", "https:host/a"),
        ("https:\\\\host\\a?sig=secret", "https:\\\\host\\a"),
        ("https%3A//host/a?sig=secret", "https%3A//host/a"),
        ("\t//host/a#sig=secret", "\t//host/a"),
        ("12:30/what?.jpg", "12:30/what?.jpg"),
        ("https://user:pw@host:8443/a.jpg?X-Amz-Signature=abc#frag", "https://host:8443/a.jpg"),
        ("https://host?token=abc", "https://host"),
        ("https://host#token", "https://host"),
        ("https://u:p@ss@host/a", "https://host/a"),
        ("http://[::1]:8000/a?b", "http://[::1]:8000/a"),
        (
            "abfss://container@account.dfs.core.windows.net/a?sig=x",
            "abfss://container@account.dfs.core.windows.net/a",
        ),
        ("abfss://user:pw@account.dfs.core.windows.net/a", "abfss://account.dfs.core.windows.net/a"),
        ("simplecache::https://u:p@host/a?t=1", "https://..."),
        ("/data/what?#1.jpg", "/data/what?#1.jpg"),
        ("a@b?c#d.jpg", "a@b?c#d.jpg"),
        ("/data/x://u:p@y?z", "/data/x://u:p@y?z"),
        ("", ""),
    ],
)
def test_what_is_shown(uri: str, safe: str) -> None:
    assert str(UriText(uri)) == safe
    assert repr(UriText(uri)) == f"UriText({safe!r})"
    assert hide_column(pa.array([uri, None])).to_pylist() == [safe, None]


@given(st.sampled_from(["s3", "https", "ftp", "abfs"]), st.text(), st.text(), st.text())
def test_never_shows_password_or_query(scheme: str, user: str, password: str, query: str) -> None:
    secret = "S3CR3T"
    uri = f"{scheme}://{user}:{secret}{password}@host/key?{query}{secret}"
    shown = str(UriText(uri))
    if "/" not in user and "?" not in user and "#" not in user:
        assert secret not in shown
    parameter = "sig=" if scheme in ("s3", "abfs") else ""  # without one, all of it is the key
    assert secret not in str(UriText(f"{scheme}://host/key?{query}&{parameter}{secret}"))


@given(st.text())
def test_any_text_is_parsed_or_refused(uri: str) -> None:
    str(UriText(uri))
    with contextlib.suppress(UriError):
        AccessPolicy((Uri("s3://bucket"), Uri("https://host/"), Uri("/data"))).check(Uri(uri))


@pytest.mark.parametrize(
    ("uri", "location"),
    [
        ("/data/a?b#c.jpg", ("file", "", "/data/a?b#c.jpg")),
        ("a.jpg", ("file", "", "a.jpg")),
        ("file:///data/a%20b?.jpg", ("file", "", "/data/a b?.jpg")),
        ("file://localhost/data/a", ("file", "", "/data/a")),
        ("s3://bucket/a?b#c%20.jpg", ("s3", "bucket", "a?b#c%20.jpg")),
        ("S3A://bucket//a", ("s3", "bucket", "/a")),
        ("s3://bucket/a::b", ("s3", "bucket", "a::b")),
        ("gs://bucket/a::http://host/b", ("gs", "bucket", "/a::http://host/b")),
        ("file:///data/%FF%0A.jpg", ("file", "", "/data/\udcff\n.jpg")),
        ("s3://bucket", ("s3", "bucket", "")),
        ("https://HOST:443/a/b?c=d", ("https", "host", "/a/b")),
        ("http://host:8080", ("http", "host:8080", "")),
        ("gs://bucket/a", ("gs", "bucket", "/a")),
        ("abfss://box@account/a", ("abfss", "box@account", "/a")),
    ],
)
def test_parts(uri: str, location: tuple[str, str, str]) -> None:
    parsed = Uri(uri)
    assert (parsed.scheme, parsed.host, parsed.path) == location


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "s3://",
        "s3:///key",
        "s3://127.0.0.1?x/key",
        "s3://127.0.0.1:80/key",
        "gs://a::http://host/key",
        "abfs://c@127.0.0.1\\.blob.core.windows.net/key",
        "s3://KEY:SECRET@bucket/a",
        "s3://KEY@bucket/a",
        "s3://KEY:SEC/RET@bucket/a",
        "https://user@host/a",
        "https:///a",
        "https://host:99999/a",
        "https://[::1/a",
        "ftp://user:SECRET@host/a",
        "file://server/share/a",
        "zip://a.jpg::s3://bucket/b.zip",
        "simplecache::s3://bucket/a",
        "1x://host/a",
        "/data/a\0b",
        "https://host/a\r\nX: y",
    ],
)
def test_refuses(uri: str) -> None:
    with pytest.raises(UriError) as caught:
        Uri(uri)
    assert caught.value.code == "bad_uri"
    assert "SECRET" not in str(caught.value)
    assert "RET@" not in str(caught.value)


@pytest.mark.parametrize(
    ("root", "uri", "joined"),
    [
        ("/data", "a/b.jpg", "/data/a/b.jpg"),
        ("/data/", "a/../b.jpg", "/data/b.jpg"),
        ("/data", "./a.jpg", "/data/a.jpg"),
        ("/data", "..a/b", "/data/..a/b"),
        ("/data", "/other/a.jpg", "/other/a.jpg"),
        ("/data", "s3://bucket/a", "s3://bucket/a"),
        ("file:///data%20set", "50%25.jpg", "/data set/50%25.jpg"),
        ("s3://bucket", "a?b#.jpg", "s3://bucket/a?b#.jpg"),
        ("s3://bucket/prefix/", "a/b.jpg", "s3://bucket/prefix/a/b.jpg"),
        ("s3://bucket/prefix", "a//b/./x/../c:/d.jpg", "s3://bucket/prefix/a//b/./x/../c:/d.jpg"),
        ("s3://bucket/prefix", "a/http://host/b.jpg", "s3://bucket/prefix/a/http://host/b.jpg"),
        ("s3://bucket/prefix", "./a.jpg", "s3://bucket/prefix/a.jpg"),
        ("gs://bucket/prefix", "a//b?#.jpg", "gs://bucket/prefix/a//b?#.jpg"),
        ("https://host/x", "a.jpg", "https://host/x/a.jpg"),
        ("", "/a.jpg", "/a.jpg"),
    ],
)
def test_resolve(root: str, uri: str, joined: str) -> None:
    assert resolve(uri, Uri(root) if root else None).secret_text == joined


@pytest.mark.parametrize(
    ("root", "uri", "error"),
    [
        ("/data", "../a", AccessDenied),
        ("/data", "a/../../b", AccessDenied),
        ("/data", "..", AccessDenied),
        ("s3://bucket/prefix", "../other/a", AccessDenied),
        ("", "a.jpg", UriError),
        ("/data", "", UriError),
        ("https://host/x?sig=1", "a.jpg", UriError),
    ],
)
def test_resolve_refuses(root: str, uri: str, error: type[UriError]) -> None:
    with pytest.raises(error):
        resolve(uri, Uri(root) if root else None)


SIGNED = "https://host/m.csv?sig=SECRET#frag"


class TestValue:
    def test_equal_by_all_of_the_text(self) -> None:
        assert Uri(SIGNED) == Uri(SIGNED)
        assert len({Uri(SIGNED), Uri(SIGNED), Uri("https://host/m.csv")}) == 2
        assert Uri("/a") != UriText("/a")

    def test_pickles_with_its_secrets_and_hides_them_after(self) -> None:
        copied = pickle.loads(pickle.dumps([Uri(SIGNED)]))  # noqa: S301
        assert copied == [Uri(SIGNED)]
        assert "SECRET" not in f"{copied} {copied[0]} {copied[0]!r} {copy.deepcopy(copied)}"

    def test_shows_nothing_by_other_ways(self) -> None:
        uri = Uri(SIGNED)
        ways = [format(uri), f"{uri}", "%s %r" % (uri, uri), json.dumps([uri], default=str)]  # noqa: UP031
        ways += [pprint.pformat([uri]), str({"a": uri}), str((uri,)), repr(uri / "x"), repr(uri.absolute())]
        assert "SECRET" not in " ".join(ways)
        with pytest.raises(TypeError):
            vars(uri)

    def test_in_a_model(self) -> None:
        class Model(BaseModel):
            model_config = ConfigDict(strict=True)
            uri: Uri
            name: UriText | None = None

        made = Model.model_validate({"uri": SIGNED, "name": "swin_t_coco"})
        assert (made.uri, made.name) == (Uri(SIGNED), UriText("swin_t_coco"))
        assert Model(uri=made.uri) == Model.model_validate({"uri": SIGNED})
        assert made.model_dump(mode="json") == {"uri": "https://host/m.csv", "name": "swin_t_coco"}
        assert "SECRET" not in f"{made} {made!r} {made.model_dump()} {made.model_dump_json()}"
        assert Model.model_json_schema()["properties"]["uri"]["type"] == "string"

    @pytest.mark.parametrize("value", [1, None, "", "s3://KEY:SECRET@bucket/a"])
    def test_refused_by_a_model(self, value: object) -> None:
        class Model(BaseModel):
            model_config = ConfigDict(strict=True, hide_input_in_errors=True)
            uri: Uri

        with pytest.raises(ValidationError) as caught:
            Model.model_validate({"uri": value})
        assert "SECRET" not in str(caught.value)


class TestPlace:
    @pytest.mark.parametrize(
        ("inner", "outer", "below"),
        [
            ("/data/a", "/data", True),
            ("/data", "/data/", True),
            ("/data-evil", "/data", False),
            ("/data/../etc", "/data", False),
            ("file:///data/a%20b/c", "/data/a b", True),
            ("s3a://bucket/a/b", "s3://bucket/a/", True),
            ("s3://bucket/a", "s3://bucket/a/b", False),
            ("https://HOST:443/a%20b/c?sig=1", "https://host/a b", True),
            ("s3://bucket/a%20b/c", "s3://bucket/a b", False),
        ],
    )
    def test_is_below(self, inner: str, outer: str, below: bool) -> None:
        assert Uri(inner).is_below(Uri(outer)) is below

    def test_is_at(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "out")
        monkeypatch.chdir(tmp_path)
        for same in ("out", "./out/", "link", (tmp_path / "out").as_uri()):
            assert Uri(same).is_at(Uri(str(tmp_path / "out")))
        assert not Uri("out").is_at(Uri("."))

    @pytest.mark.parametrize(
        ("root", "child"),
        [
            ("out/", "out/x"),
            ("/", "/x"),
            ("file:///data%20set", "/data set/x"),
            ("s3://bucket", "s3://bucket/x"),
            ("s3://bucket/out/", "s3://bucket/out/x"),
            ("abfs://box@account/out", "abfs://box@account/out/x"),
        ],
    )
    def test_child(self, root: str, child: str) -> None:
        assert Uri(root) / "x" == Uri(child)

    def test_absolute(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        assert Uri("a/../b").absolute() == Uri(str(tmp_path / "b"))
        assert Uri("s3://bucket/a").absolute() == Uri("s3://bucket/a")
        assert "SECRET" not in str(Uri("//host/x?sig=SECRET").absolute())


@pytest.mark.parametrize(
    ("uri", "secret"),
    [
        ("https:/h/x?sig=S", True),
        ("//h/x?sig=S", True),
        (" //h/x#sig=S", True),
        ("az://c/a.jpg?sig=S", True),
        ("gs://b/o?X-Goog-Signature=S", True),
        ("webhdfs://h:1/x?delegation=S", True),
        ("//h/x", False),
        ("/data/a?b#c@d", False),
        ("swin_t_coco", False),
        ("s3://bucket/a?b#c", False),
        ("gs://bucket/a?b", False),
        ("file:///data/a?b#c.jpg", False),
        ("file://user:pw@host/a", True),
        ("s3://KEY:SEC?RET@bucket/a", True),
        ("https://host/a", False),
        ("https://host/a#token", True),
        ("ftp://user:pw@host/a", True),
        ("abfs://box@account/a", False),
        ("abfs://box@account/a?sig=1", True),
        ("simplecache::https://u:p@host/a", True),
    ],
)
def test_holds_secrets(uri: str, secret: bool) -> None:
    assert UriText(uri).holds_secrets is secret


class TestTextOfOthers:
    @pytest.mark.parametrize(
        ("text", "safe"),
        [
            ("GET https://u:p@host/a?sig=S failed", "GET https://host/a failed"),
            ("'https://host/a?sig=S': 403", "'https://host/a': 403"),
            ("simplecache::https://u:p@host/a?t", "simplecache::https://host/a"),
            ("http://host:8000: no answer", "http://host:8000: no answer"),
            ("[Errno 2] No such file: '/data/a?b'", "[Errno 2] No such file: '/data/a?b'"),
            ("https://user:pa'ss@host/x?sig=1 failed", "https://host/x failed"),
            ("https://host/a?sig=abc|SECRET, https://host/b?x={S}^", "https://host/a, https://host/b"),
            ("<redis://:p`w1@host/0>", "<redis://host/0>"),
            ("", ""),
        ],
    )
    def test_every_uri_in_it(self, text: str, safe: str) -> None:
        assert hide_secrets(text) == safe

    def test_a_long_word_takes_no_time(self) -> None:
        word = "a" * 300_000
        assert hide_secrets(f"{word} https://u:p@host/a") == f"{word} https://host/a"

    def test_this_uri_with_whatever_is_in_it(self) -> None:
        uri = UriText("ftp://user:a 'b' c@host/x")
        assert uri.hide_in("no ftp://user:a 'b' c@host/x there") == "no ftp://host/x there"
