"""Each figure counts what it says it counts, on small projects written for it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from benchmarks.checks.house import MAY_IMPORT, PARTS, PLACES_SHOWN, ROOT, Figure, main, measure, table
from benchmarks.checks.import_graph import read_modules

FACE = '"""What lives here."""\n'
RIGHT = {
    "pipeline/__init__.py": FACE,
    "pipeline/errors.py": "class UserError(Exception): ...\n",
    "pipeline/storage/__init__.py": FACE,
    "pipeline/storage/uris.py": "from pipeline.errors import UserError\n",
    "pipeline/train/__init__.py": FACE,
    "pipeline/train/config.py": "from pipeline.storage import uris\n",
    "pipeline/train/run.py": "import ray\n\nfrom pipeline.train.config import TrainConfig\n",
    "jobs/__init__.py": "",
    "jobs/train.py": "from pipeline.train import config, run\n",
    "testing/s3_server.py": "from pipeline.storage import uris\n",
    "benchmarks/bench_train.py": "from jobs.train import main\nfrom testing.s3_server import S3Server\n",
    "tests/train/test_run.py": "from pipeline.train.run import train\nfrom testing.s3_server import S3Server\n",
    "tests/benchmarks/test_bench_train.py": "from benchmarks.bench_train import measure\n",
}


def write(root: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def figure(root: Path, name: str) -> Figure:
    return {figure.name: figure for figure in measure(read_modules(root, PARTS))}[name]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project with nothing to find fault with."""
    write(tmp_path, RIGHT)
    return tmp_path


def test_a_right_house_passes(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(root) == 0
    out = capsys.readouterr().out
    assert "NOT" not in out
    assert out.endswith("modules of pipeline/ that import Ray (1): pipeline.train.run\n")


CASES = [
    pytest.param(
        "loose modules in pipeline/",
        {"pipeline/a.py": "", "pipeline/b.py": ""},
        ["pipeline/a.py", "pipeline/b.py", "pipeline/errors.py"],
        id="loose",
    ),
    pytest.param(
        "files in the largest folder of pipeline/",
        {f"pipeline/storage/objects/{n:02}.py": "" for n in range(17)} | {"pipeline/storage/objects/__init__.py": FACE},
        [f"pipeline/storage/objects/{n:02}.py" for n in range(17)],
        id="large folder",
    ),
    pytest.param(
        "import circles",
        {
            "pipeline/train/a.py": "def f():\n    from pipeline.train.b import g\n",
            "pipeline/train/b.py": "from . import c\n",
            "pipeline/train/c.py": "try:\n    import pipeline.train.a\nexcept ImportError:\n    pass\n",
        },
        ["pipeline.train.a <-> pipeline.train.b <-> pipeline.train.c"],
        id="circle through a function, a relative import and a try",
    ),
    pytest.param(
        "rooms of pipeline/ without a floor",
        {"pipeline/shed/tools.py": "", "pipeline/attic.py": ""},
        [f"pipeline/{room}: add it to FLOORS in benchmarks/checks/house.py" for room in ("attic", "shed")],
        id="unknown rooms",
    ),
    pytest.param(
        "imports upward or sideways in pipeline/",
        {
            "pipeline/storage/a.py": "def f():\n    from pipeline.train.config import TrainConfig\n",
            "pipeline/export/run.py": "from ..train import run\n",
        },
        ["pipeline.export.run imports pipeline.train.run", "pipeline.storage.a imports pipeline.train.config"],
        id="upward, and one job from another",
    ),
    pytest.param(
        "imports between parts that may not be",
        {
            "pipeline/train/a.py": "from jobs import train\nimport testing.s3_server\n",
            "benchmarks/a.py": "from tests.train.test_run import world\n",
            "testing/a.py": "from tests import train\n",
            "tests/train/test_a.py": "from benchmarks import bench_train\n",
        },
        [
            "benchmarks.a imports tests.train.test_run",
            "pipeline.train.a imports jobs.train",
            "pipeline.train.a imports testing.s3_server",
            "testing.a imports tests",
            "tests.train.test_a imports benchmarks.bench_train",
        ],
        id="parts",
    ),
    pytest.param(
        "exception names caught in jobs/",
        {
            "jobs/a.py": "try: ...\nexcept (A, errors.B, KeyError): ...\nexcept C as error: ...\nexcept OSError: ...\n",
            "jobs/b.py": "try: ...\nexcept A: ...\nexcept (D, E): ...\nexcept (F, G, H, I): ...\nexcept: ...\n",
        },
        [
            "A in jobs/a.py, jobs/b.py",
            "B in jobs/a.py",
            "C in jobs/a.py",
            *(f"{name} in jobs/b.py" for name in "DEFGHI"),
        ],
        id="exceptions",
    ),
    pytest.param(
        "calls of redact in pipeline/",
        {"pipeline/storage/a.py": "# redact(a)\n" + "redact(uri)\n" * 12 + "uris.redact(uri)\n"},
        [f"pipeline/storage/a.py:{line}" for line in range(2, 15)],
        id="redact",
    ),
    pytest.param(
        "modules that call redact",
        {"pipeline/storage/a.py": "redact(uri)\nredact(uri)\n", "pipeline/train/a.py": "f(redact(uri))\n"},
        ["pipeline/storage/a.py", "pipeline/train/a.py"],
        id="redacting modules",
    ),
    pytest.param(
        "Ray in rooms that do without",
        {
            "pipeline/model/a.py": "def f():\n    import ray\n",
            "pipeline/export/a.py": "from ray.data import Dataset\n",
            "pipeline/cluster/a.py": "import ray\n",
            "pipeline/masks/a.py": "import rays\n",
        },
        ["pipeline.export.a", "pipeline.model.a"],
        id="ray",
    ),
    pytest.param(
        "files outside model/ naming the detector",
        {
            "pipeline/train/a.py": "# What Swin-T wants.\n",
            "pipeline/train/b.py": "CASCADE_STAGES = 3\n",
            "pipeline/train/losses/cascade.py": "",
            "pipeline/train/c.py": "# Swing the picture.\n",
            "pipeline/model/swin.py": "class Swin: ...\n",
        },
        ["pipeline/train/a.py", "pipeline/train/b.py", "pipeline/train/losses/cascade.py"],
        id="detector",
    ),
    pytest.param(
        "packages without a face, or with imports",
        {
            "pipeline/coco/sub/a.py": "",
            "pipeline/coco/__init__.py": '"""coco"""\n',
            "pipeline/masks/__init__.py": "",
            "pipeline/images/__init__.py": FACE + "from pipeline.images.decode import decode_image\n",
        },
        [
            "pipeline/coco/__init__.py has no docstring of a sentence",
            "pipeline/coco/sub/__init__.py is missing",
            "pipeline/images/__init__.py imports",
            "pipeline/masks/__init__.py has no docstring of a sentence",
        ],
        id="faces",
    ),
    pytest.param(
        "configs that load Ray or torch",
        {
            "pipeline/config/__init__.py": FACE,
            "pipeline/config/base.py": "class Base:\n    import timm.layers\n",
            "pipeline/model/__init__.py": FACE + "import torch.nn\n",
            "pipeline/model/variants.py": "",
            "pipeline/annotate/config.py": "from pipeline.model import variants\n",
            "pipeline/export/config.py": "def f():\n    import torch\n",
        },
        [
            "pipeline.annotate.config -> pipeline.model -> torch",
            "pipeline.config.base -> timm",
        ],
        id="heavy configs, one by the package around what it imports",
    ),
]


@pytest.mark.parametrize(("name", "files", "places"), CASES)
def test_a_fault_is_found(name: str, files: dict[str, str], places: list[str], root: Path) -> None:
    assert figure(root, name).ok
    write(root, files)
    found = figure(root, name)
    assert (sorted(found.places), found.ok) == (sorted(places), False)
    assert main(root) == 1


def test_every_figure_has_a_case(root: Path) -> None:
    names = {figure.name for figure in measure(read_modules(root, PARTS))}
    assert names - {case.values[0] for case in CASES} == {"modules with one importer"}


def test_modules_with_one_importer(root: Path) -> None:
    name = "modules with one importer"
    before = ["pipeline.errors, by pipeline.storage.uris", "pipeline.storage.uris, by pipeline.train.config"]
    assert figure(root, name).places == [*before, "pipeline.train.run, by jobs.train"]
    write(root, {"jobs/again.py": "from pipeline.train import run\n", "tests/test_a.py": "import pipeline.errors\n"})
    assert figure(root, name).places == before


def test_what_only_type_checkers_import_is_no_import(root: Path) -> None:
    lines = "if TYPE_CHECKING:\n    import torch\n    import pipeline.train.run\nelse:\n    import pipeline.errors\n"
    write(root, {"pipeline/storage/a.py": lines, "pipeline/annotate/config.py": lines})
    modules = read_modules(root, PARTS)
    assert modules["pipeline.storage.a"].imports == {"pipeline.errors"}
    assert figure(root, "imports upward or sideways in pipeline/").ok
    assert figure(root, "configs that load Ray or torch").ok


def test_what_is_in_no_room_is_in_no_arrow(root: Path) -> None:
    write(root, {"pipeline/shed/tools.py": "from pipeline.train import run\n", "jobs/a.py": "import pipeline\n"})
    assert figure(root, "imports upward or sideways in pipeline/").ok


def test_a_missed_goal_shows_its_first_places() -> None:
    places = [f"place {n}" for n in range(PLACES_SHOWN + 3)]
    lines = table([Figure("met", 20, places), Figure("missed", 1, places), Figure("just missed", 1, places[:2])])
    assert [line.split() for line in lines[:3]] == [
        ["figure", "value", "goal", "ok?"],
        ["met", "13", "<=", "20", "ok"],
        ["missed", "13", "<=", "1", "NOT"],
    ]
    assert [line.strip() for line in lines[3:]][: PLACES_SHOWN + 1] == [*places[:PLACES_SHOWN], "and 3 more"]
    assert [line.strip() for line in lines[-2:]] == places[:2]


def test_runs_on_this_project_with_a_bare_python() -> None:
    # -S: no installed packages.
    command = [sys.executable, "-S", "-m", "benchmarks.checks.house"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.stderr, done.returncode) == ("", 0 if "NOT" not in done.stdout else 1)
    assert "that import Ray" in done.stdout


def test_every_part_has_its_grants() -> None:
    assert set(PARTS) >= {grant for grants in MAY_IMPORT.values() for grant in grants}
