from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from jobs import demo, render_scenes


def test_scenes_of_a_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert render_scenes.main(["--out", str(tmp_path), "--count", "3", "--seed", "5", "--side", "96"]) == 0
    assert "3 scenes: " in capsys.readouterr().out
    written = json.loads((tmp_path / "instances.json").read_text())
    assert [image["file_name"] for image in written["images"]] == [f"images/{n:06d}.jpg" for n in range(3)]
    assert Image.open(tmp_path / "images" / "000002.jpg").size == (96, 96)


@pytest.mark.parametrize("arguments", [["--count", "0"], ["--count", "1", "--side", "63"]])
def test_what_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        render_scenes.main(["--out", str(tmp_path), *arguments])
    assert "must be at least" in capsys.readouterr().err


def test_a_place_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert render_scenes.main(["--out", str(tmp_path / "file" / "scenes"), "--count", "1"]) == 2
    assert f"'{tmp_path}/file/scenes'" in capsys.readouterr().err


def test_a_data_set_of_the_user_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It has the usual names of files too."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "000000.jpg").write_bytes(b"the user's")
    truth = tmp_path / "instances.json"
    truth.write_text('{"images": [], "annotations": [], "categories": [{"id": 1, "name": "cat"}]}')
    before = truth.read_bytes()
    assert render_scenes.main(["--out", str(tmp_path), "--count", "1"]) == 2
    assert "is not empty, and holds no rendered scenes" in capsys.readouterr().err
    assert demo.main(["--out", str(tmp_path)]) == 2
    assert truth.read_bytes() == before
    assert (tmp_path / "images" / "000000.jpg").read_bytes() == b"the user's"
    assert render_scenes.main(["--out", str(tmp_path / "own"), "--count", "2"]) == 0
    assert render_scenes.main(["--out", str(tmp_path / "own"), "--count", "1"]) == 0  # replaces its own


def test_a_set_that_was_cut_short_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr("pipeline.synthetic.scenes.render_scene", fails)
        assert render_scenes.main(["--out", str(tmp_path), "--count", "2"]) == 130
    assert render_scenes.main(["--out", str(tmp_path), "--count", "2"]) == 0
    assert len(list((tmp_path / "images").iterdir())) == 2
