"""What a wheel installs works in any folder, even where packages called like ours break whoever imports them."""

from __future__ import annotations

import json
import os
import shutil
import site
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from maskfleet import __version__
from pipeline.synthetic.scenes import write_scenes

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("LICENSE", "README.md", "configs", "jobs", "maskfleet", "pipeline", "pyproject.toml", "setup.py")
NAMESAKES = ("benchmarks", "configs", "jobs", "maskfleet", "pipeline", "testing", "tests")
NUM_SCENES = 4
BUILD = "from setuptools import build_meta; print(build_meta.build_{kind}({folder!r}))"


def build(kind: str, sources: Path, folder: Path) -> Path:
    """A wheel or an sdist, by the backend that is installed."""
    command = [sys.executable, "-c", BUILD.format(kind=kind, folder=str(folder))]
    done = subprocess.run(command, cwd=sources, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return folder / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """By way of an sdist, and of a copy of the sources; beside them, as setuptools leaves it, lies an earlier build."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "copy"
    copy.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, copy / name)
    shutil.unpack_archive(build("sdist", copy, folder), folder / "unpacked", filter="data")
    (sources,) = (folder / "unpacked").iterdir()
    (sources / "build" / "lib" / "pipeline").mkdir(parents=True)
    (sources / "build" / "lib" / "pipeline" / "removed_since.py").touch()
    return build("wheel", sources, folder)


@pytest.fixture(scope="module")
def bin_folder(wheel: Path) -> Path:
    """Of an environment with the wheel and what it depends on, without the checkout."""
    home = wheel.parent / "environment"
    venv.create(home, symlinks=True)
    scheme = sysconfig.get_preferred_scheme("prefix")
    paths = sysconfig.get_paths(scheme, vars={"base": str(home), "platbase": str(home)})
    # Folders that a .pth file names have their own .pth files passed over, and so the editable install.
    Path(paths["purelib"], "dependencies.pth").write_text("\n".join(site.getsitepackages()))
    python = Path(paths["scripts"], "python")
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)]
    command += ["--ignore-installed", "--no-compile", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return Path(paths["scripts"])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where nothing can be imported without an error."""
    for name in NAMESAKES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"raise RuntimeError('the {name} of the user')")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*command: str | Path, **environment: str) -> str:
    """What a command says, which ends well."""
    own = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "RAY_ADDRESS")}
    done = subprocess.run(
        list(map(str, command)), env=own | environment, capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def installed(bin_folder: Path) -> Path:
    """Where the packages are."""
    return Path(run(bin_folder / "python", "-I", "-c", "import jobs; print(jobs.__path__[0])").strip()).parent


def test_a_wheel_from_an_sdist_has_what_the_checkout_has(installed: Path) -> None:
    for package in ("jobs", "maskfleet", "pipeline"):
        theirs, ours = (
            {str(path.relative_to(top / package)) for path in (top / package).rglob("*") if _is_source(path)}
            for top in (installed, ROOT)
        )
        configs = {f"configs/{path.name}" for path in (ROOT / "configs").iterdir()} if package == "jobs" else set()
        assert theirs == ours | configs


def _is_source(path: Path) -> bool:
    return path.is_file() and path.suffix != ".pyc"


@pytest.mark.parametrize("way", ["command", "module", "PYTHONPATH"])
def test_names_of_the_user_do_no_harm(bin_folder: Path, folder: Path, way: str) -> None:
    if way != "command":  # these two are the wish for the user's own
        shutil.rmtree(folder / "maskfleet")
    command = [bin_folder / "python", "-m", "maskfleet"] if way == "module" else [bin_folder / "maskfleet"]
    environment = {"PYTHONPATH": "."} if way == "PYTHONPATH" else {}
    assert run(*command, "--version", **environment) == f"maskfleet {__version__}\n"
    assert run(*command, "visualize", "--help", **environment).startswith("usage: ")
    printed = run(*command, "config", "annotate_laptop", **environment)
    schema = printed.splitlines()[0].partition("=file://")[2]
    assert json.loads(Path(schema).read_text())["title"] == "AnnotateConfig"


def test_a_hidden_package_is_named(bin_folder: Path, folder: Path) -> None:
    """In a program of the user's the path is the user's."""
    (folder / "pipeline" / "__init__.py").write_text("")
    shutil.rmtree(folder / "maskfleet")
    script = "import maskfleet\ntry: maskfleet.load_model\nexcept ImportError as error: print(error)"
    assert run(bin_folder / "python", "-c", script) == (
        f"a package of the name 'pipeline' hides maskfleet's: {folder}/pipeline; rename it\n"
    )


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("way", ["command", "PYTHONPATH"])
def test_a_first_hour(bin_folder: Path, installed: Path, folder: Path, way: str) -> None:
    """In Ray's workers too, nobody imports what is called like ours."""
    if way != "command":
        shutil.rmtree(folder / "maskfleet")
    environment = {"PYTHONPATH": "."} if way == "PYTHONPATH" else {}

    def maskfleet(*arguments: str) -> str:
        return run(bin_folder / "maskfleet", *arguments, **environment)

    truth = write_scenes(folder / "scenes", NUM_SCENES, seed=1000)
    Path("annotate.yaml").write_text(maskfleet("config", "annotate_laptop"))
    settings = {
        "manifest.uri": truth,
        "manifest.format": "coco",
        "manifest.image_root": "scenes",
        "model.checkpoint": installed / "jobs/demo_model.safetensors",
    }
    maskfleet("annotate", "--config", "annotate.yaml", *(f"--set={key}={value}" for key, value in settings.items()))
    run_json = json.loads(Path("annotations/run.json").read_text())
    assert run_json["images"] == {"manifest": NUM_SCENES, "annotated": NUM_SCENES, "failed": 0, "deleted": 0}
    maskfleet("export", "--annotations", "annotations", "--format", "coco", "--out", "labels.json")
    found = json.loads(Path("labels.json").read_text())
    assert len(found["images"]) == NUM_SCENES
    maskfleet("visualize", "--annotations", "annotations", "--out", "drawn")
    assert len(list(Path("drawn").glob("*.png"))) == NUM_SCENES
    Path("evaluate.yaml").write_text(maskfleet("config", "evaluate"))
    settings = {"ground_truth.uri": truth, "gallery.image_root": "scenes"}
    maskfleet("evaluate", "--config", "evaluate.yaml", *(f"--set={key}={value}" for key, value in settings.items()))
    assert Path("evaluation/report.html").is_file()
