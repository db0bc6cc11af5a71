from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.drawing.file_names import InTheWay, PictureNames, check_free


def test_stems_get_names_that_are_unique_in_any_case() -> None:
    names = PictureNames()
    assert [names.of_stem(stem) for stem in ("a", "a", "A", "a_2", "b.tar")] == [
        "a.png",
        "a_2.png",
        "A_3.png",
        "a_2_2.png",
        "b.tar.png",
    ]


@pytest.mark.parametrize(
    ("image_id", "name"),
    [("x/1.jpg", "x_1.png"), ("1.TIFF", "1.png"), ("a.pgm", "a.png"), ("a.b", "a.b.png"), (7, "7.png")],
)
def test_the_suffix_of_an_image_goes(image_id: int | str, name: str) -> None:
    assert PictureNames().of_id(image_id) == name


@pytest.mark.parametrize("image_id", [7, "..", ".hidden", "x" * 300, "a\nb\0", "\ud800", "///", "猫.jpg", ""])
def test_any_id_gives_a_file_name(tmp_path: Path, image_id: int | str) -> None:
    files = PictureNames()
    first, second = files.of_id(image_id), files.of_id(image_id)
    assert first.lower() != second.lower()
    for name in (first, second):
        assert not name.startswith(".")
        (tmp_path / name).write_bytes(b"")
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("kind", ["pipe", "link"])
def test_what_is_no_file_is_in_the_way(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "table.csv"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(tmp_path / "nothing")
    with pytest.raises(InTheWay, match="is in the way"):
        check_free(path)
    assert path.is_fifo() if kind == "pipe" else path.is_symlink()
