from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.storage.whole_file import write_whole


def test_nothing_is_seen_before_the_end(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    with write_whole(path) as temporary:
        temporary.write_bytes(b"content")
        assert not path.exists()
        assert temporary.parent == path.parent
        assert temporary.name.startswith(".")
    assert [(found.name, found.read_bytes()) for found in path.parent.iterdir()] == [("file", b"content")]


def test_an_error_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail() -> None:
        with write_whole(path) as temporary:
            temporary.write_bytes(b"half of the n")
            raise KeyError("in the middle")

    with pytest.raises(KeyError):
        fail()
    assert [(found.name, found.read_bytes()) for found in tmp_path.iterdir()] == [("file", b"old")]
