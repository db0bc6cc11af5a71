"""What is wrong with the world, command by command: the exit code, and one last line with the name and the cure."""

from __future__ import annotations

import errno
import json
import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import yaml
from PIL import Image

from jobs import annotate, convert_checkpoint, demo, evaluate, export, predict, render_scenes, train, visualize
from jobs.ending import ends_in_order
from pipeline.config.base import ConfigError
from pipeline.config.loading import load_config
from pipeline.storage.whole_file import write_whole
from pipeline.train.config import TrainConfig
from tests.drawing.drawn_cases import write_output, write_picture

Main = Callable[[Sequence[str]], int]
IN_THE_WAY = "something else is at this path: give another one"
TOO_LONG = "give another path"


class World:
    """Inputs that are as they should be, and what may stand in for them."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder, self.model = folder, model
        self.picture = folder / "a.png"
        Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(self.picture)
        truth = {
            "images": [{"id": 1, "file_name": "a.png", "height": 20, "width": 30}],
            "categories": [{"id": 1, "name": "a"}],
            "annotations": [
                {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9], "iscrowd": 0, "area": 81}
                | {"segmentation": [[1, 1, 10, 1, 10, 10, 1, 10]]}
            ],
        }
        self.coco = folder / "coco.json"
        self.coco.write_text(json.dumps(truth))
        write_picture(folder / "drawn.png")
        write_output(folder / "annotations", ["a"], [str(folder / "drawn.png")], failed=[], without_cat=[])
        (folder / "file").write_text("of somebody")
        (folder / "damaged.safetensors").write_bytes(model.read_bytes()[:1000])

    def config(self, job: str) -> list[str]:
        """Arguments of a job with settings."""
        parts: dict[str, dict[str, Any]] = {
            "annotate": {"manifest": {"uri": f"{self.folder}", "format": "folder"}},
            "evaluate": {"predictions": {"uri": f"{self.folder}/annotations"}, "ground_truth": {"uri": str(self.coco)}},
            "train": {"data": {"train": [{"uri": str(self.coco), "image_root": str(self.folder)}]}},
        }
        values = parts[job] | {"output": {"uri": f"{self.folder}/out"}}
        if job != "evaluate":
            values["model"] = {"annotate": {"checkpoint": str(self.model)}, "train": {"start": str(self.model)}}[job]
        path = self.folder / f"{job}.yaml"
        path.write_text(yaml.safe_dump(values))
        return ["--config", str(path)]


# By the command: its arguments, with the place of its results and its model.
COMMANDS: dict[str, tuple[Main, Callable[[World, str, str], list[str]]]] = {
    "annotate": (
        annotate.main,
        lambda w, out, model: [
            *w.config("annotate"),
            *("--set", f"output.uri={out}", "--set", f"model.checkpoint={model}"),
        ],
    ),
    "annotate --dry-run": (
        annotate.main,
        lambda w, out, model: [
            *w.config("annotate"),
            *("--dry-run", "--set", f"output.uri={out}", "--set", f"model.checkpoint={model}"),
        ],
    ),
    "evaluate": (evaluate.main, lambda w, out, model: [*w.config("evaluate"), "--set", f"output.uri={out}"]),
    "train": (
        train.main,
        lambda w, out, model: [*w.config("train"), "--set", f"output.uri={out}", "--set", f"model.start={model}"],
    ),
    "export": (
        export.main,
        lambda w, out, model: ["--annotations", f"{w.folder}/annotations", "--format", "coco", "--out", out],
    ),
    "predict": (
        predict.main,
        lambda w, out, model: [str(w.picture), "--device", "cpu", "--model", model, "--out", out],
    ),
    "visualize": (visualize.main, lambda w, out, model: ["--annotations", f"{w.folder}/annotations", "--out", out]),
    "convert_checkpoint": (convert_checkpoint.main, lambda w, out, model: [model, f"{out}/x.safetensors"]),
    "render_scenes": (render_scenes.main, lambda w, out, model: ["--out", out, "--count", "1"]),
    "demo": (demo.main, lambda w, out, model: ["--out", out]),
}
WITH_MODEL = ["annotate", "annotate --dry-run", "train", "predict", "convert_checkpoint"]
WITH_RAY = ["annotate", "annotate --dry-run", "evaluate", "train"]
PLACES = {"below a file": ("{}/file/out", IN_THE_WAY), "a name too long": ("{}/" + "n" * 300, TOO_LONG)}
MODELS = {"damaged": "{}/damaged.safetensors", "gone": "{}/gone.pth", "no model": "{}/coco.json"}


@pytest.fixture
def world(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    def started(*args: Any, **options: Any) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(ray, "init", started)
    return World(tmp_path, tiny_model)


@pytest.fixture
def last_line(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> Callable[[], str]:
    """Of jobs that keep a log, and of commands that do not."""

    def said() -> str:
        text = capsys.readouterr().err + caplog.text
        assert "Traceback" not in text
        assert "\x1b" not in text
        logged = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
        return logged[-1] if logged else text.strip().splitlines()[-1]

    return said


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_place_that_cannot_be_written(world: World, last_line: Callable[[], str], command: str, place: str) -> None:
    main, arguments = COMMANDS[command]
    path, cure = PLACES[place]
    assert main(arguments(world, path.format(world.folder), str(world.model))) == 2
    line = last_line()
    assert line.startswith("exit code 2: ")
    assert str(world.folder) in line
    assert line.endswith(cure)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("command", WITH_MODEL)
def test_a_model_that_cannot_be_used(world: World, last_line: Callable[[], str], command: str, model: str) -> None:
    main, arguments = COMMANDS[command]
    path = MODELS[model].format(world.folder)
    assert main(arguments(world, f"{world.folder}/new", path)) == 2
    line = last_line()
    assert line.startswith("exit code 2: ")
    assert path in line


@pytest.mark.parametrize("command", WITH_RAY)
def test_no_cluster_there(
    world: World, last_line: Callable[[], str], command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # whatever other tests have started
    main, arguments = COMMANDS[command]
    address = ["--set", "resources.ray_address=127.0.0.1:1"]
    assert main([*arguments(world, f"{world.folder}/new", str(world.model)), *address]) == 2
    assert re.match("exit code 2: ClusterError: .* 127.0.0.1:1 .*is the cluster up", last_line())


@pytest.mark.parametrize("command", [annotate, evaluate, train])
def test_several_problems_stand_above_the_last_line(
    world: World, caplog: pytest.LogCaptureFixture, command: Any
) -> None:
    config = world.config(command.__name__.rpartition(".")[2])
    with open(config[1], "a", encoding="utf-8") as file:
        file.write("nonsense: 1\nmore: 2\n")
    assert command.main(config) == 2
    *_, above, last = [record.getMessage() for record in caplog.records]
    assert re.search("nonsense: no such setting.*\n.*more: no such setting", above)
    assert last == f"exit code 2: ConfigError: {config[1]}: 2 problems, listed above"


@pytest.mark.parametrize(
    ("raised", "code", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), 1, "{}/result'; make room there"),
        (OSError(errno.EMFILE, "Too many open files"), 1, "ulimit -n"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 2, "'/x'; it must be there, and user"),
        (PermissionError("403 s3://k:SECRET@b/x"), 2, "(or the keys in use) allowed to use it"),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), 1, "Connection reset by peer"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_what_the_system_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], raised: Exception, code: int, words: str
) -> None:
    @ends_in_order("run it again")
    def main(argv: Sequence[str] | None = None) -> int:
        with write_whole(tmp_path / "result"):
            raise raised

    assert main([]) == code
    said = capsys.readouterr().err
    assert said.startswith(f"exit code {code}: {type(raised).__name__}: ")
    assert words.format(tmp_path) in said
    assert "SECRET" not in said
    assert len(said.splitlines()) == 1


def test_what_nobody_foresaw_has_its_traceback_above(capsys: pytest.CaptureFixture[str]) -> None:
    @ends_in_order("run it again")
    def main(argv: Sequence[str] | None = None) -> int:
        raise LookupError("s3://k:SECRET@b/x")

    assert main([]) == 1
    said = capsys.readouterr().err
    assert said.startswith("Traceback")
    assert said.splitlines()[-1].startswith("exit code 1: LookupError: ")
    assert said.endswith("; run it again\n")
    assert "SECRET" not in said


@pytest.mark.parametrize("number", ["0", "1"])
def test_set_reaches_into_a_list(world: World, number: str) -> None:
    config, change = world.config("train")[1], f"data.train.{number}.uri=/x #1.json"
    if number == "0":
        found = load_config(TrainConfig, config, [change, "data.train.0.weight=0.5"])
        assert str(found.data.train[0].uri) == "/x #1.json"  # text, to the last character
        assert found.data.train[0].weight == 0.5
    else:
        with pytest.raises(ConfigError, match=r"data\.train is a list of 1, numbered from 0: it has no '1'"):
            load_config(TrainConfig, config, [change])


def test_what_workers_of_a_training_read(world: World) -> None:
    changes = ["data.validation={uri: /v.json, image_root: /v}"]
    read = load_config(TrainConfig, world.config("train")[1], changes).data.read_by_workers()
    assert {name: str(uri) for name, uri in read.items()} == {
        "data.train.0.image_root": str(world.folder),
        "data.validation.image_root": "/v",
    }
