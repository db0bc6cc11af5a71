from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.predict.run import find_images, shown


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.JPG", "a.png", "notes.txt", "deep/er/c.webp", "out/a.png", "odd[1].jpg", ".h.jpg", ".trash/a.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def found(folder: Path, *named: str, skip: str | None = None) -> list[str]:
    files = find_images([str(folder / name) for name in named], skip=folder / skip if skip else None)
    return [file.relative_to(folder).as_posix() for file in files]


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        pytest.param(["b.JPG", "a.png"], ["b.JPG", "a.png"], id="files in the order given"),
        pytest.param(["notes.txt"], ["notes.txt"], id="a file that is named is taken whatever its name"),
        pytest.param([""], ["a.png", "b.JPG", "deep/er/c.webp", "odd[1].jpg"], id="folder, to any depth, sorted"),
        pytest.param(["*.png", "**/*.webp"], ["a.png", "deep/er/c.webp"], id="patterns"),
        pytest.param(["odd[1].jpg"], ["odd[1].jpg"], id="a file whose name looks like a pattern"),
        pytest.param(["a.png", "./a.png", "a.*"], ["a.png"], id="each once"),
        pytest.param(["a.png", "gone.jpg", "*.bmp"], ["a.png", "gone.jpg", "*.bmp"], id="what matches nothing stays"),
    ],
)
def test_find(folder: Path, named: list[str], expected: list[str]) -> None:
    assert found(folder, *named, skip="out") == expected


def test_output_folder_is_searched_only_if_named(folder: Path) -> None:
    assert "out/a.png" in found(folder, "")
    assert found(folder, "out", skip="out") == ["out/a.png"]


def test_empty_folder_stays(folder: Path) -> None:
    (folder / "empty").mkdir()
    assert found(folder, "a.png", "empty") == ["a.png", "empty"]


def test_nothing_at_all(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"no image files: .*gone"):
        found(folder, "gone.jpg", "*.bmp")


def test_one_list_of_suffixes_and_what_it_leaves_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a.JFIF", "b.mpo", "c.dib", "d.apng", "e.heic", "f.txt", "g"):
        (tmp_path / name).touch()
    assert found(tmp_path, "") == ["a.JFIF", "b.mpo", "c.dib", "d.apng", "e.heic"]
    assert "2 files are left out, since their names are no pictures': 1 .txt, 1 without a suffix" in caplog.text
    (tmp_path / "g").unlink()
    found(tmp_path, "")
    assert "1 file is left out, since its name is no picture's: 1 .txt" in caplog.text


def test_a_name_that_is_not_utf8_can_be_printed() -> None:
    assert shown(Path("b/\udcff.jpg")) == "b/\\udcff.jpg"
