from __future__ import annotations

import os
from contextlib import closing
from itertools import islice
from pathlib import Path, PureWindowsPath

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.storage.file_names import (
    MAX_NAME_BYTES,
    MAX_PATH_BYTES,
    TakenPaths,
    alternatives,
    safe_name,
    safe_path,
    split_suffix,
)

_SCENIC = "a b#c%d+e&f;g'h[x]*猫é~$!^(){}=@,-".replace("*", "")


@pytest.mark.parametrize("path", ["a.jpg", "train/a.jpg", "a/b.c/d", _SCENIC, "nulls.txt", "com10", "a..b", "x" * 200])
def test_names_that_all_take_stay(path: str) -> None:
    assert safe_path(path) == path


@pytest.mark.parametrize(
    ("path", "safe"),
    [
        ("..", "_"),
        ("", "_"),
        ("/a//./b/../c", "a/b/c"),
        (".hidden/a", "_hidden/a"),
        ("a. ./b ", "a___/b_"),
        ('<>:"\\|?*\0\n\x7f\ud800', "_" * 12),
        ("CON", "_CON"),
        ("aux.tar.gz/LPT1 .x", "_aux.tar.gz/_LPT1 .x"),
    ],
)
def test_others_are_changed(path: str, safe: str) -> None:
    assert safe_path(path) == safe


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=12) | st.text(min_size=100, max_size=400) | st.from_regex(r"(?i)\A(con|nul|com1)[. ]?.?\Z"))
def test_any_text_is_a_name(tmp_path: Path, text: str) -> None:
    """The file system here takes it, and Python's own rule for Windows."""
    name = safe_name(text)
    assert len(name.encode()) <= MAX_NAME_BYTES
    assert not PureWindowsPath(name).is_reserved()
    assert PureWindowsPath(name).name == name
    assert not name.startswith(".")
    assert not name.endswith((".", " "))
    assert not set('<>:"/\\|?*') & set(name)
    assert safe_name(name) == name
    (tmp_path / name).write_bytes(b"")
    os.unlink(tmp_path / name)


def test_long_ones_differ_where_their_originals_do() -> None:
    names = {safe_name("x" * 300 + end) for end in ("a.jpg", "b.jpg", "a.png")}
    assert len(names) == 3
    assert all(name.endswith((".jpg", ".png")) for name in names)
    paths = {safe_path("long folder/" * 90 + end) for end in ("a.jpg", "b.jpg")} | {
        safe_path("long folder/" * 91 + "a.jpg")
    }
    assert len(paths) == 3
    assert all(len(path.encode()) <= MAX_PATH_BYTES for path in paths)


@pytest.mark.parametrize(
    ("path", "parts"),
    [("a.b/c", ("a.b/c", "")), ("a/b.c.d", ("a/b.c", ".d")), ("a/.b", ("a/.b", "")), ("a.", ("a", "."))],
)
def test_suffixes(path: str, parts: tuple[str, str]) -> None:
    assert split_suffix(path) == parts


def test_what_is_taken() -> None:
    with closing(TakenPaths()) as taken:
        assert taken.take("a/b.jpg", "a/b.txt")
        assert not taken.take("a/b.jpg")
        assert not taken.take("c.jpg", "A/B.TXT"), "differs in case alone"
        assert taken.take("c.jpg"), "nothing was taken with the other one"
        assert not taken.take("a/b.txt/c"), "a file is no folder"
        assert not taken.take("A"), "a folder is no file"
        assert not taken.take("d", "d/e")
        assert taken.take("a/e\u0301")
        assert not taken.take("a/\u00e9"), "differs in normalisation alone"


def test_alternatives_differ() -> None:
    first = list(islice(alternatives("a/b.jpg", 7), 7))
    assert first[0] == "a/b.jpg"
    assert len(set(first)) == 7
    assert first == list(islice(alternatives("a/b.jpg", 7), 7))
    assert {name.partition("/")[0] for name in first[1::2]} == {"a"}
    assert all(name.startswith("b_") and name.endswith(".jpg") for name in first[2::2])
