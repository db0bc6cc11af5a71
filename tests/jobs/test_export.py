"""The export command: exit codes, and what it says."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jobs import export
from pipeline.export.formats.table import FORMATS
from tests.export.export_cases import MASKS, Picture, output_with_files, write_output

ROOT = Path(__file__).parents[2]


@pytest.fixture
def annotations(tmp_path: Path) -> str:
    pictures = [Picture(1, [MASKS["full"]] * 2, scores=[0.9, 0.4]), Picture(2, None)]
    return str(write_output(tmp_path / "annotations", pictures))


def test_done(annotations: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    thresholds = tmp_path / "thresholds.yaml"
    thresholds.write_text("cat: 0.5", encoding="utf-8")
    out = tmp_path / "labels.json"
    arguments = ["--annotations", annotations, "--format", "coco", "--out", str(out)]
    assert export.main([*arguments, "--class-thresholds", str(thresholds), "--min-score", "0.2"]) == 0
    assert "1 image, 1 label; left out: 1 failed image, 1 detection below" in capsys.readouterr().out
    found = json.loads(out.read_text("utf-8"))
    assert len(found["annotations"]) == 1
    assert (found["info"]["min_score"], found["info"]["class_thresholds"]) == (0.2, {"cat": 0.5})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param(["--annotations", "{tmp}/gone"], "OutputError: {tmp}/gone does not exist", id="no annotations"),
        pytest.param(["--annotations", "s3://key:SECRET@b/x"], "UriError: ", id="bad URI"),
        pytest.param(["--out", "{tmp}"], "ExportError: {tmp} exists and is a folder", id="a folder"),
        pytest.param(["--out", "https://host/x?SECRET"], "UriError: nothing can be written", id="http"),
        pytest.param(["--min-score", "2"], "ExportError: a minimum score must be from 0 to 1", id="no score"),
        pytest.param(["--class-thresholds", "{tmp}/gone.yaml"], "ConfigError: {tmp}/gone.yaml", id="no thresholds"),
        pytest.param(["--class-thresholds", "{tmp}/typo.yaml"], "did you mean 'cat'?", id="unknown class"),
    ],
)
def test_bad_input(
    annotations: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, changes: list[str], message: str
) -> None:
    (tmp_path / "typo.yaml").write_text("cta: 0.5", encoding="utf-8")
    arguments = ["--annotations", annotations, "--format", "coco", "--out", str(tmp_path / "out.json")]
    with caplog.at_level(logging.INFO):
        assert export.main([*arguments, *(text.format(tmp=tmp_path) for text in changes)]) == 2
    last = caplog.records[-1].getMessage()
    assert last.startswith("exit code 2: ")
    assert message.format(tmp=tmp_path) in last
    assert "SECRET" not in caplog.text
    assert not (tmp_path / "out.json").exists()


def test_a_place_in_which_a_file_lies(annotations: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    out = str(tmp_path / "file" / "out.json")
    with caplog.at_level(logging.INFO):
        assert export.main(["--annotations", annotations, "--format", "coco", "--out", out]) == 2
    assert caplog.records[-1].getMessage().startswith("exit code 2: FileExistsError: ")


@pytest.mark.parametrize("arguments", [[], ["--annotations", "x", "--format", "voc", "--out", "y"]])
def test_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        export.main(arguments)
    assert ended.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_the_help_names_every_format(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        export.main(["--help"])
    said = capsys.readouterr().out
    assert all(format.help_line() in said for format in FORMATS.values())


def test_as_a_process(annotations: str, tmp_path: Path) -> None:
    out = str(tmp_path / "studio")
    command = [
        sys.executable,
        "-m",
        "jobs.export",
        "--annotations",
        annotations,
        "--format",
        "label-studio",
        "--out",
        out,
    ]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("1 image, 2 labels")
    assert f"exit code 0: label-studio: {out}" in ended.stderr.splitlines()[-1]
    assert (tmp_path / "studio" / "labeling_config.xml").exists()


def test_what_is_said_without_reading_is_said_at_once(tmp_path: Path) -> None:
    """By the modules that are imported for it, one answer after the other: seconds of imports stand between."""
    asked = {
        "--help": "",
        "--format coc": "",
        "--annotations a --format coco --out o --val-fraction 0.1": "--val-fraction means nothing to coco",
        "--annotations a --format yolo-seg --out o --val-fraction 1": "--val-fraction must be above 0 and below 1",
        f"--annotations {tmp_path}/gone --format coco --out {tmp_path}/o": "does not exist, or is empty",
    }
    program = (
        "import contextlib, json, sys\n"
        "from jobs import export\n"
        "loaded = []\n"
        f"for line in {list(asked)}:\n"
        "    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(None):\n"
        "        assert export.main(line.split()) == 2\n"
        "    loaded.append(sorted({name.partition('.')[0] for name in sys.modules}))\n"
        "json.dump(loaded, sys.stdout)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert all(message in ended.stderr for message in asked.values())
    never = {"ray", "torch", "torchvision", "timm", "matplotlib", "pandas", "cv2", "scipy", "pycocotools"}
    *before_reading, last = map(set, json.loads(ended.stdout))
    assert not last & never
    for loaded in before_reading:
        assert not loaded & {*never, "fsspec", "obstore", "PIL", "yaml", "sqlite3", "xml", "asyncio"}


def test_the_options_of_formats(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each reaches its format, and is written down."""
    annotations = str(output_with_files(tmp_path))
    asked = {
        "yolo-seg": (["--images", "copy", "--val-fraction", "0.4"], {"images": "copy", "val_fraction": 0.4}),
        "label-studio": (["--image-prefix", "/data/local-files/?d="], {"image_prefix": "/data/local-files/?d="}),
        "coco": (["--images-per-file", "2", "--polygons"], {"images_per_file": 2, "polygons": True}),
    }
    for format, (options, record) in asked.items():
        out = tmp_path / format
        assert export.main(["--annotations", annotations, "--format", format, "--out", str(out), *options]) == 0
        assert json.loads((out / "export.json").read_text("utf-8"))["options"] == record
    with pytest.raises(SystemExit):
        export.main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    for option, formats in {"images": "yolo-seg", "images-per-file": "coco, coco-results"}.items():
        assert re.search(rf"--{option} \S+ {formats}: ", said)
