"""The command ``maskfleet``: its table, what each job is called, and that answers do not wait for Ray and torch."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

import maskfleet
from jobs.arguments import COMMANDS, typed
from maskfleet.cli import main
from pipeline.model.predictor import PRECISIONS
from pipeline.model.settings import PRECISION_NAMES
from pipeline.predict.model import load_model
from pipeline.storage.uris import Uri
from tests.jobs.test_show import write_output

ROOT = Path(__file__).parents[2]
# What takes seconds to import, alone or together with what it imports.
HEAVY = ["ray", "torch", "torchvision", "timm", "matplotlib", "pandas", "scipy", "boto3", "botocore", "s3fs", "cv2"]
TYPO = "manifest: {}\noutputt: {uri: x}\n"
EVALUATION = (
    "predictions: {{uri: '{folder}'}}\nground_truth: {{uri: '{folder}/gone.json'}}\noutput: {{uri: '{folder}/out'}}\n"
)
TRAINING = (
    "data: {{train: [{{uri: '{data}', image_root: .}}]}}\nmodel: {{start: gone.pth}}\noutput: {{uri: '{folder}/out'}}\n"
)
ANNOTATION = "manifest: {{uri: '{manifest}'}}\nmodel: {{checkpoint: {model}}}\noutput: {{uri: '{folder}/out'}}\n"


class Case(NamedTuple):
    """A command line that is answered soon.

    Attributes:
        arguments: ``{folder}`` is one with a few files.
        code: its exit code.
        says: a part of what it prints.
    """

    arguments: list[str]
    code: int
    says: str


CASES = {
    **{f"help of {name}": Case([name, "--help"], 0, f"usage: maskfleet {name} ") for name in COMMANDS},
    **{
        f"no such option of {name}": Case([name, "--no-such-option"], 2, f"maskfleet {name}: error")
        for name in COMMANDS
    },
    **{
        f"{what} of {name}": Case([name, "--config", f"{{folder}}/{file}"], 2, says)
        for name in ("annotate", "evaluate", "train")
        for what, file, says in (
            ("missing config", "gone.yaml", "gone.yaml: cannot be read"),
            ("typo in the config", "typo.yaml", "did you mean 'output'"),
        )
    },
    "help": Case(["--help"], 0, "list the ready configs"),
    "version": Case(["--version"], 0, f"maskfleet {maskfleet.__version__}"),
    "no such command": Case(["anotate"], 2, "did you mean 'annotate'"),
    "no command": Case([], 2, "usage: maskfleet COMMAND"),
    "list of configs": Case(["config"], 0, "annotate_laptop"),
    "no such config": Case(["config", "annotate_labtop"], 2, "did you mean 'annotate_laptop'"),
    "model of annotate": Case(["annotate", "--config", "{folder}/model.yaml"], 2, "neither a file nor a known model"),
    "manifest of annotate": Case(["annotate", "--config", "{folder}/manifest.yaml"], 2, "manifest.uri: {folder}/gone"),
    "ground truth": Case(["evaluate", "--config", "{folder}/evaluate.yaml"], 2, "ground_truth.uri: {folder}/gone.json"),
    "data of train": Case(["train", "--config", "{folder}/train.yaml"], 2, "data.train.0.uri: {folder}/gone.json"),
    "model of train": Case(["train", "--config", "{folder}/start.yaml"], 2, "neither a file nor a known model"),
    "annotations of visualize": Case(["visualize", "--annotations", "{folder}/gone", "--out", "{folder}/o"], 2, "gone"),
    "annotations of export": Case(
        ["export", "--annotations", "{folder}/gone", "--format", "coco", "--out", "{folder}/o.json"], 2, "gone"
    ),
    "model of predict": Case(
        ["predict", "a.jpg", "--model", "gone.pth", "--out", "{folder}/o"], 2, "'gone.pth' is neith"
    ),
    "a precision that there was once": Case(
        ["predict", "a.jpg", "--model", "m", "--out", "o", "--precision", "fp16"], 2, "fp16 is no option any more"
    ),
    "model of convert": Case(["convert", "gone.pth", "{folder}/o.safetensors"], 2, "gone.pth' is neither"),
    "output of show": Case(["show", "{folder}/gone"], 2, "gone does not exist, or is empty"),
    "output of publish": Case(["publish", "{folder}/gone", "--table", "kind=delta"], 2, "gone does not exist, or is"),
    "table of publish": Case(["publish", "{folder}/there"], 2, "had no output.table: name one with --table"),
    "typo in the table of publish": Case(["publish", "x", "--table", "kind=delta", "nam=y"], 2, "did you mean 'name'"),
    "an output": Case(["show", "{folder}/there", "--failed", "{folder}/failed.csv"], 0, "5 failed images"),
    "output of compare": Case(
        ["compare", "{folder}/gone", "{folder}/gone", "--out", "x"], 2, "gone does not exist, or is"
    ),
    "limit of compare": Case(["compare", "a", "b", "--out", "x", "--fail-if", "pis>1"], 2, "'pis>1' is no limit like"),
    "nothing to compare with": Case(["compare", "a", "--out", "x"], 2, "give two outputs, or one and --run"),
    "output of compact": Case(["compact", "{folder}/gone"], 2, "gone does not exist, or is empty"),
    "nothing to compact": Case(["compact", "{folder}/there", "--images-per-file", "1"], 0, "no small ones to join"),
    "output of demo": Case(["demo", "--out", "{folder}"], 2, "is not empty, and not of an earlier demo"),
}
# All in one process: what one of them loads is told of that one alone.
SCRIPT = """
import contextlib, io, json, logging, sys
from maskfleet.cli import main

cases, heavy = json.loads(sys.argv[1]), set(json.loads(sys.argv[2]))
answers, before = {}, set()
for name, arguments in cases.items():
    logging.root.handlers.clear()
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            code = main(arguments)
        except SystemExit as ended:
            code = ended.code
        except ImportError as error:
            code = repr(error)
    loaded = heavy & sys.modules.keys()
    answers[name] = [code, said.getvalue(), sorted(loaded - before)]
    before = loaded
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("answers")
    (folder / "weights.pth").touch()
    (folder / "there.json").touch()
    write_output(Uri(str(folder / "there")))
    files = {
        "typo": TYPO,
        "evaluate": EVALUATION.format(folder=folder),
        "train": TRAINING.format(folder=folder, data=folder / "gone.json"),
        "start": TRAINING.format(folder=folder, data=folder / "there.json"),
        "model": ANNOTATION.format(folder=folder, manifest=folder, model="gone.pth"),
        "manifest": ANNOTATION.format(folder=folder, manifest=folder / "gone", model=folder / "weights.pth"),
    }
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder


@pytest.fixture(scope="module")
def answers(folder: Path) -> dict[str, Any]:
    commands = {name: [text.format(folder=folder) for text in case.arguments] for name, case in CASES.items()}
    command = [sys.executable, "-c", SCRIPT, json.dumps(commands), json.dumps(HEAVY)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.mark.parametrize("name", CASES)
def test_an_answer_waits_for_nothing(name: str, answers: dict[str, Any], folder: Path) -> None:
    code, said, loaded = answers[name]
    assert (code, loaded) == (CASES[name].code, []), said
    assert CASES[name].says.format(folder=folder) in said


def test_importing_the_package_loads_nothing() -> None:
    script = (
        "import sys; before = set(sys.modules); import maskfleet; "
        "print([name for name in sys.modules if name.split('.')[0] in {'pipeline', 'jobs', 'torch', 'numpy'}])"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_module_of_the_name_of_ours_is_named(tmp_path: Path) -> None:
    """Not only a package, which the wheel's test has: ``pipeline.py`` is what many call theirs."""
    (tmp_path / "pipeline.py").touch()
    script = "import maskfleet, sys; sys.path.insert(0, ''); from maskfleet import load_model"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert f"ImportError: a package of the name 'pipeline' hides maskfleet's: {tmp_path}/pipeline.py; rename it" in (
        done.stderr
    )


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["config"]])
@pytest.mark.parametrize("is_read", [True, False])
def test_who_asks_for_little_gets_it_from_anywhere(arguments: list[str], is_read: bool, tmp_path: Path) -> None:
    """Of a folder that was removed; and without a word where nobody reads on."""
    gone = tmp_path / "gone"
    gone.mkdir()
    script = (
        f"import os, sys; os.chdir({str(gone)!r}); os.rmdir({str(gone)!r}); sys.argv[1:] = {arguments!r}; "
        "from maskfleet.cli import main; sys.exit(main())"
    )
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:"},
        stdout=subprocess.PIPE if is_read else writer,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


def test_the_package() -> None:
    assert maskfleet.load_model is load_model
    assert {"__version__", "load_model"} <= set(dir(maskfleet))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = maskfleet.nothing


@pytest.mark.parametrize(
    ("started", "job", "expected"),
    [
        pytest.param(None, "annotate", "maskfleet annotate", id="console script"),
        pytest.param("maskfleet.__main__", "annotate", "python -m maskfleet annotate", id="package"),
        pytest.param("jobs.annotate", "annotate", "python -m jobs.annotate", id="job"),
        pytest.param("jobs.demo", "predict", "python -m jobs.predict", id="advice of a job"),
        pytest.param(None, "convert_checkpoint", "maskfleet convert", id="shorter name"),
        pytest.param(None, "render_scenes", "python -m jobs.render_scenes", id="no command"),
    ],
)
def test_jobs_are_called_as_they_are_typed(
    monkeypatch: pytest.MonkeyPatch, started: str | None, job: str, expected: str
) -> None:
    spec = None if started is None else ModuleSpec(started, None)
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", spec)
    assert typed(job) == expected


@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_who_has_read_enough_is_told_no_more(argument: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "maskfleet", argument]
    ran = subprocess.run(command, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (ran.returncode, ran.stderr) == (0, "")


@pytest.mark.parametrize("on_path", [False, True])
def test_a_command_that_is_not_on_the_path_has_its_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, on_path: bool
) -> None:
    script = tmp_path / "maskfleet"
    script.touch(0o755)
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    monkeypatch.setattr(sys, "argv", [str(script), "demo"])
    monkeypatch.setenv("PATH", str(tmp_path) if on_path else str(tmp_path / "others"))
    assert typed("predict") == f"{'maskfleet' if on_path else script} predict"


def test_a_parse_error_names_the_module_that_was_started() -> None:
    command = [sys.executable, "-m", "jobs.annotate", "--nonsense"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: python -m jobs.annotate ")
    assert "python -m jobs.annotate: error: " in done.stderr


@pytest.mark.parametrize("path", sorted((ROOT / "configs").iterdir()), ids=lambda path: path.name)
def test_ready_config(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As it stands in the repository, but for the place of its schema, which is where it was."""
    assert main(["config", path.name.removesuffix(".yaml")]) == 0
    printed = capsys.readouterr().out.splitlines()
    lines = path.read_text(encoding="utf-8").splitlines()
    assert printed[1:] == lines[1:]
    if path.suffix == ".yaml":
        schema = printed[0].removeprefix("# yaml-language-server: $schema=file://")
        assert Path(schema) == path.with_name(f"{path.name.split('.')[0].split('_')[0]}.schema.json").resolve() or (
            path.stem == "self_training" and schema.endswith("/configs/train.schema.json")
        )
        assert Path(schema).is_file()


def test_each_ready_config_says_what_it_is_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config"]) == 0
    lines = capsys.readouterr().out.split("\n\n")[0].splitlines()
    assert [line.split()[0] for line in lines] == [
        *sorted(path.stem for path in (ROOT / "configs").glob("*.yaml")),
        *sorted(path.name for path in (ROOT / "configs").glob("*.json")),
    ]
    assert all(len(line.partition("  ")[2].strip()) > 10 for line in lines)


def test_the_precisions_of_command_lines_are_those_of_the_model() -> None:
    assert tuple(PRECISIONS) == PRECISION_NAMES


def test_outputs_in_a_checkout_are_not_sent_to_a_cluster() -> None:
    """``ray job submit --working-dir .`` leaves out what .gitignore names: where ready configs and README's commands
    write, at the root alone, for pipeline/ has an annotations/ of its own.
    """
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    configs = [yaml.safe_load(path.read_text()) for path in (ROOT / "configs").glob("*.yaml")]
    outputs = {Path(config["output"]["uri"]).parts[0] for config in configs}
    commands = re.findall(r"--out (\S+)", (ROOT / "README.md").read_text())
    configs_of_ones_own = re.findall(r"maskfleet config \w+ > (\S+)", (ROOT / "README.md").read_text())
    assert configs_of_ones_own
    assert not {f"/{name}" for name in configs_of_ones_own} & set(ignored), "these are to be sent"
    for name in {name for name in (*outputs, *commands) if re.fullmatch(r"[\w.-]+", name)}:
        assert {f"/{name}", f"/{name}/"} & set(ignored), name
        assert f"{name}/" not in ignored


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "deploy/README.md", "docs/*.md"])
def test_commands_of_the_docs_hold_no_comments(page: str) -> None:
    """Where zsh is typed to, ``#`` begins none: ``make demo  # ...`` asks for a target ``#``."""
    for path in ROOT.glob(page):
        for block in re.findall(r"^```bash\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE):
            assert not re.search(r"(^|\s)#", block, re.MULTILINE), block
