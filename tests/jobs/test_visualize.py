from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs import visualize
from pipeline.config.images import ImagesConfig
from tests.drawing.drawn_cases import GREY, SIZE, write_output, write_picture

IDS = ["a/1.jpg", "b/1.jpg", "A/1.jpg", "c"]


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Four images that can be read, of which ``c`` has no cat, and one that failed."""
    uris = [str(tmp_path / f"{i}.png") for i in range(4)]
    for uri in uris:
        write_picture(Path(uri))
    write_output(tmp_path / "run", [*IDS, "failed"], [*uris, "x"], failed=["failed"], without_cat=["c"])
    return tmp_path / "run"


def write_run(folder: Path, ids: list[str]) -> None:
    """An output below ``run`` with a picture for each id."""
    uris = [str(folder / f"{number}.png") for number in range(len(ids))]
    for uri in uris:
        write_picture(Path(uri))
    write_output(folder / "run", ids, uris)


def run(output: Path, out: Path, *options: str) -> int:
    return visualize.main(["--annotations", str(output), "--out", str(out), *options])


def changed(file: Path) -> np.ndarray:
    return (np.asarray(Image.open(file)) != GREY).any(axis=2)


def names(out: Path) -> list[str]:
    return sorted(file.name for file in out.glob("*.png"))


def test_a_file_for_each_image(output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(output, tmp_path / "out") == 0
    assert names(tmp_path / "out") == ["A_1_2.png", "a_1.png", "b_1.png", "c.png"]
    said = capsys.readouterr().out
    assert "a/1.jpg: 2 objects: a_1.png" in said
    assert "4 images drawn, 7 objects, 0 images could not be drawn" in said


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--ids", "c,a/1.jpg"], ["a_1.png", "c.png"]),
        (["--limit", "2"], ["a_1.png", "b_1.png"]),
        (["--categories", "cat"], ["A_1_2.png", "a_1.png", "b_1.png"]),
        (["--categories", "Äpfel", "--min-score", "0.2", "--limit", "1"], ["a_1.png"]),
    ],
)
def test_which_images(output: Path, tmp_path: Path, options: list[str], expected: list[str]) -> None:
    assert run(output, tmp_path / "out", *options) == 0
    assert names(tmp_path / "out") == expected


def test_a_table_says_which_picture_is_whose_where_names_do_not(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_run(tmp_path, ["=a/b", "a.jpg", "b", "NUL"])
    assert run(tmp_path / "run", out, "--ids", "b,a.jpg") == 0
    assert not (out / "images.csv").exists()
    assert run(tmp_path / "run", out) == 0
    with (out / "images.csv").open(newline="") as file:
        table = {row["image_id"]: row["picture"] for row in csv.DictReader(file)}
    assert table == {"'=a/b": "'=a_b.png", "a.jpg": "a.png", "b": "b.png", "NUL": "_NUL.png"}
    assert names(out) == ["=a_b.png", "_NUL.png", "a.png", "b.png"]
    (out / "images.csv").write_text("a table of the user's\n")
    assert run(tmp_path / "run", out) == 2
    assert (out / "images.csv").read_text() == "a table of the user's\n"


def _table(out: Path) -> dict[str, str]:
    with (out / "images.csv").open(newline="") as file:
        return {row["picture"]: row["image_id"] for row in csv.DictReader(file)}


def test_a_table_is_of_the_pictures_that_are_there(tmp_path: Path) -> None:
    """Whatever runs they are of; and there is none where none is needed any more."""
    out = tmp_path / "out"
    write_run(tmp_path, ["=a/b", "a.jpg", "x/y", "x_y"])
    assert run(tmp_path / "run", out, "--ids", "=a/b,x/y") == 0
    assert _table(out) == {"'=a_b.png": "'=a/b", "x_y.png": "x/y"}
    assert run(tmp_path / "run", out, "--ids", "a.jpg") == 0
    assert _table(out) == {"'=a_b.png": "'=a/b", "x_y.png": "x/y", "a.png": "a.jpg"}
    assert run(tmp_path / "run", out, "--ids", "x_y") == 0  # over the picture of another one
    assert _table(out) == {"'=a_b.png": "'=a/b", "x_y.png": "x_y", "a.png": "a.jpg"}
    (out / "=a_b.png").unlink()
    assert run(tmp_path / "run", out, "--grid", "1x1") == 0  # which is no picture of an image
    assert run(tmp_path / "run", out, "--ids", "a.jpg") == 0
    assert not (out / "images.csv").exists()


def test_each_part_can_be_left_out(output: Path, tmp_path: Path) -> None:
    parts = {"boxes", "labels", "scores", "masks"}
    pixels = {}
    for part in sorted(parts):
        off = [f"--no-{other}" for other in parts - {part}]
        assert run(output, tmp_path / part, "--ids", "a/1.jpg", *off) == 0
        pixels[part] = changed(tmp_path / part / "a_1.png")
    assert pixels["masks"].sum() == 700
    assert pixels["boxes"].sum() == 2 * (20 + 30) - 4 + 2 * (10 + 10) - 4  # two outlines a pixel wide
    assert not (pixels["labels"] == pixels["scores"]).all()
    assert run(output, tmp_path / "none", "--ids", "a/1.jpg", *(f"--no-{part}" for part in parts)) == 0
    assert not changed(tmp_path / "none" / "a_1.png").any()


def test_sheets(output: Path, tmp_path: Path) -> None:
    assert run(output, tmp_path / "out", "--grid", "1x3", "--ids", ",".join(IDS)) == 0
    assert names(tmp_path / "out") == ["sheet_001.png", "sheet_002.png"]
    first, second = (Image.open(tmp_path / "out" / name) for name in names(tmp_path / "out"))
    assert first.width > 3 * visualize.CELL[1]
    assert second.width < 2 * visualize.CELL[1]


def test_a_sheet_is_in_the_order_of_the_ids(tmp_path: Path) -> None:
    """Whatever the order of rows and files; as numbers, not as text. One that was asked for by its ids is in theirs."""
    for ids in ([9, 10, 11], [3, 1, 2]):
        for number in ids:
            Image.new("RGB", SIZE[::-1], (0, 0, 20 * number)).save(tmp_path / f"{number}.png")
        write_output(tmp_path / "numbers", ids, [str(tmp_path / f"{number}.png") for number in ids])

    def drawn(*options: str) -> list[int]:
        """The images of a sheet of one row, by the blue of their pictures, which nothing is drawn over."""
        nothing = [f"--no-{part}" for part in ("boxes", "labels", "scores", "masks")]
        assert run(tmp_path / "numbers", tmp_path / "out", "--grid", "1x6", *nothing, *options) == 0
        pixels = np.asarray(Image.open(tmp_path / "out" / "sheet_001.png")).astype(int)
        blue = np.where((pixels[..., :2] == 0).all(axis=2), pixels[..., 2], 0).max(axis=0)
        found = blue[np.flatnonzero(blue)] // 20
        return found[np.flatnonzero(np.diff(found, prepend=0))].tolist()

    assert drawn() == [1, 2, 3, 9, 10, 11]
    assert drawn("--ids", "9,2,10") == [9, 2, 10]


def test_a_sheet_is_filled_by_default(output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(output, tmp_path / "out", "--grid", "1x2") == 0
    assert "2 images drawn" in capsys.readouterr().out


def test_what_cannot_be_drawn_is_named_and_the_rest_is_drawn(
    output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "1.png").unlink()
    Image.new("RGB", SIZE).save(tmp_path / "3.png")
    assert run(output, tmp_path / "out", "--ids", ",".join([*IDS, "failed"])) == 1
    said = capsys.readouterr()
    assert "b/1.jpg: not drawn: not_found" in said.err
    assert "c: not drawn: another_size" in said.err
    assert "failed: not drawn: not_found: failed when it was annotated" in said.err
    assert "2 images drawn, 4 objects, 3 images could not be drawn" in said.out
    assert names(tmp_path / "out") == ["A_1_2.png", "a_1.png"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ids", "nobody"], "has no image nobody"),
        (["--categories", "dog"], "no detections of 'dog'.*only of: cat, Äpfel"),
        (["--categories", "cat", "--min-score", "0.95"], "nothing to draw"),
    ],
)
def test_nothing_to_draw(
    output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert run(output, tmp_path / "out", *options) == 2
    assert re.match(f"exit code 2: .*{message}", capsys.readouterr().err)


@pytest.mark.parametrize(
    "options", [["--grid", "0x3"], ["--grid", "3"], ["--min-score", "2"], ["--limit", "0"], ["--ids", ""]]
)
def test_options_that_make_no_sense(output: Path, tmp_path: Path, options: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(output, tmp_path / "out", *options)
    assert stopped.value.code == 2


def test_images_below_a_root(tmp_path: Path) -> None:
    (tmp_path / "moved").mkdir()
    write_picture(tmp_path / "moved" / "1.png")
    write_output(tmp_path / "run", [1], ["1.png"], images=ImagesConfig(allowed_roots=()))
    assert run(tmp_path / "run", tmp_path / "out", "--image-root", str(tmp_path / "moved")) == 0
    assert names(tmp_path / "out") == ["1.png"]


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("gone", "gone does not exist, or is empty"),
        ("photos", "photos has no run.json, and holds 1.png"),
        ("photos/1.png", "1.png is a file: give the output folder"),
        ("run/data", "data is the folder of an output's data files: give the folder that it is in"),
    ],
)
def test_no_output_there(tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str, words: str) -> None:
    """In the words of ``show`` and ``export``."""
    (tmp_path / "photos").mkdir()
    write_picture(tmp_path / "photos" / "1.png")
    write_output(tmp_path / "run", [1], ["1.png"])
    assert run(tmp_path / place, tmp_path / "out") == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_output_folder_that_cannot_be_made(output: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert run(output, tmp_path / "file" / "out") == 2


@pytest.mark.parametrize(
    ("text", "expected"), [("a,b", ["a", "b"]), ('"x, y.jpg",z', ["x, y.jpg", "z"]), ("a,,a", ["a"])]
)
def test_names(text: str, expected: list[str]) -> None:
    assert visualize._names(text) == expected


@pytest.mark.parametrize("options", [[], ["--grid", "1x2"]])
def test_a_file_of_the_user_is_not_overwritten(
    output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    out = tmp_path / "out"
    assert run(output, out, *options) == 0
    drawn = {path: path.read_bytes() for path in out.glob("*.png")}
    assert run(output, out, *options) == 0  # what it drew itself is replaced
    for path, content in drawn.items():
        assert path.read_bytes() == content
        Image.open(path).convert("L").save(path)  # the user's own
        theirs = path.read_bytes()
        assert run(output, out, *options) == 2
        assert f"{path} is in the way" in capsys.readouterr().err
        assert path.read_bytes() == theirs
        path.write_bytes(content)
