"""What runs the steps: each is run once, and one that dies, hangs or is torn off costs itself. And two real steps."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from torch.autograd import DeviceType

from benchmarks.checks.import_graph import read_modules
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.record import SHARED, Key, Record, source_digest
from benchmarks.gpu.runner import Runner
from benchmarks.gpu.steps import STEPS, Step
from benchmarks.gpu.summary import summary
from benchmarks.gpu.trace import report_trace

ROOT = Path(__file__).resolve().parents[2]
# Does what the name of its step says, without torch, and takes down that it was run.
PROGRAM = """
import json, os, signal, sys, time
name, out = sys.argv[1], sys.argv[sys.argv.index("--out") + 1]
with open(RUNS, "a") as runs:
    runs.write(name + " ")
with open(out, "a") as file:
    file.write(json.dumps({"answer": 42}) + "\\n")
    file.write('{"torn": ')
if name == "dies":
    os.kill(os.getpid(), signal.SIGSEGV)
if name == "raises":
    raise RuntimeError("CUDA error: device-side assert triggered")
if name == "hangs":
    time.sleep(60)
"""
Run = Callable[..., list[dict[str, Any]]]


def step(name: str, needs_gpu: bool = False) -> Step:
    return Step(name, "machine", 1.0 if name == "hangs" else 20.0, "", needs_gpu)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "figures.jsonl"


@pytest.fixture
def runs(tmp_path: Path) -> Callable[[], list[str]]:
    """The names of the steps that were run."""
    return lambda: (tmp_path / "runs").read_text().split() if (tmp_path / "runs").exists() else []


@pytest.fixture
def run(tmp_path: Path, file: Path) -> Run:
    """The runner on steps, with a new process's view of the file."""
    program = tmp_path / "program.py"
    program.write_text(f"RUNS = {str(tmp_path / 'runs')!r}\n{PROGRAM}")

    def run(*steps: Step, kind: str = "cuda", device: str = "H200", budget_s: float = 60.0) -> list[dict[str, Any]]:
        runner = Runner(Record(file), kind, device, False, budget_s, [sys.executable, str(program)])
        return runner.run(steps)

    return run


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_each_step_has_a_function() -> None:
    assert len({step.name for step in STEPS}) == len(STEPS)
    for step in STEPS:
        assert callable(getattr(importlib.import_module(step.path), step.function)), step.name


def test_a_step_is_run_once(run: Run, runs: Callable[[], list[str]], file: Path) -> None:
    first = run(step("one"), step("two"))
    assert [(row["step"], row["status"], row["figures"]) for row in first] == [
        ("one", "done", {"answer": 42}),
        ("two", "done", {"answer": 42}),
    ]
    assert lines(file) == first
    assert run(step("one"), step("two"), step("three"))[:2] == first
    assert runs() == ["one", "two", "three"]


def test_on_another_device_it_is_run_again(run: Run, runs: Callable[[], list[str]]) -> None:
    run(step("one"))
    run(step("one"), device="H100")
    assert runs() == ["one", "one"]


@pytest.mark.parametrize(
    ("name", "status", "error"),
    [
        ("dies", "killed by SIGSEGV", None),
        ("raises", "failed with exit code 1", "RuntimeError: CUDA error: device-side assert triggered"),
        ("hangs", "timed out after 1 s", None),
    ],
)
def test_what_fails_costs_itself_and_is_tried_again(
    run: Run, runs: Callable[[], list[str]], name: str, status: str, error: str | None
) -> None:
    failed, good = run(step(name), step("good"))
    assert (failed["status"], failed["figures"]) == (status, {"answer": 42})
    assert failed["error"][-1:] == ([] if error is None else [error])
    assert good["status"] == "done"
    run(step(name), step("good"))
    assert runs() == [name, "good", name]


def test_a_torn_line_is_no_line_and_spoils_none(run: Run, runs: Callable[[], list[str]], file: Path) -> None:
    run(step("one"), step("two"))
    file.write_bytes(file.read_bytes()[:-20])
    run(step("one"), step("two"))
    assert runs() == ["one", "two", "two"]
    assert [row["step"] for row in Record(file).rows] == ["one", "two"]
    run(step("one"), step("two"))
    assert len(runs()) == 3


def test_what_means_nothing_on_a_cpu_is_not_run_there(run: Run, runs: Callable[[], list[str]]) -> None:
    assert run(step("one", needs_gpu=True), kind="cpu") == []
    assert runs() == []


def test_when_the_time_is_up_the_rest_is_left(run: Run, runs: Callable[[], list[str]], file: Path) -> None:
    assert run(step("one"), budget_s=0.0) == []
    assert not file.exists()
    assert [row["step"] for row in run(step("one"))] == ["one"]


def test_the_digest_is_that_of_what_a_step_runs(tmp_path: Path) -> None:
    names = ["pipeline/model/roi.py", "benchmarks/gpu/machine.py", "benchmarks/gpu/trace.py", "benchmarks/gpu/bench.py"]
    for name in {*names, *(place for place in SHARED if place.endswith(".py"))}:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")

    def changed(name: str) -> bool:
        before = source_digest("benchmarks.gpu.machine", tmp_path)
        (tmp_path / name).write_text("# another\n")
        return source_digest("benchmarks.gpu.machine", tmp_path) != before

    assert {name: changed(name) for name in names} == dict(zip(names, (True, True, False, True), strict=True))


def test_summary_says_how_far_the_goals_are() -> None:
    figures = {
        "fp32 plain, batch 1": {"images_per_s": 10.0},
        "bf16 graphs, batch 8": {"images_per_s": 85.0},
        "bf16, batch 8": {"images_per_s": 50.0},
    }
    row = {"step": "throughput", "status": "done", "seconds": 3.0, "figures": figures}
    text = summary([row], "H200", False)
    assert "85.0 images/s (bf16 graphs, batch 8) of 100; 8.5x of 8x" in text
    assert "goals" not in summary([row], "CPU", True)


def test_a_trace_counts_each_moment_once() -> None:
    """Kernels of two streams at once: the device is busy from 0 to 30 and from 50 to 60 of 100 us."""
    spans = {"gemm": (0, 20), "Memcpy HtoD": (10, 30), "norm": (50, 60)}
    cuda = [
        SimpleNamespace(
            name=name,
            device_type=DeviceType.CUDA,
            time_range=SimpleNamespace(start=start, end=end, elapsed_us=lambda start=start, end=end: end - start),
        )
        for name, (start, end) in spans.items()
    ]
    host = SimpleNamespace(name="launch", device_type=DeviceType.CPU)
    figures: dict[str, Any] = {}
    bench = SimpleNamespace(report=figures.__setitem__)
    report_trace(bench, "bf16", [*cuda, host], wall_s=100e-6, batches=1)  # type: ignore[arg-type]
    assert figures["bf16"] == {"kernels a batch": 2, "copies a batch": 1, "wall ms a batch": 0.1, "idle share": 0.6}
    assert figures["bf16, kernel 1"]["share"] == figures["bf16, kernel 2"]["share"] == 0.2
    assert figures["bf16, kernel 3"] == {"share": 0.1, "calls": 1, "name": "norm"}


HIDE = """
import importlib.machinery, sys

class Hidden:
    find_distributions = importlib.machinery.PathFinder.find_distributions

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.split(".")[0] not in {names}:
            return importlib.machinery.PathFinder.find_spec(name, path, target)

sys.meta_path = [Hidden if finder is importlib.machinery.PathFinder else finder for finder in sys.meta_path]
"""
LACKING = ("ray", "pycocotools", "faster_coco_eval", "s3fs", "pandas", "obstore", "pooch")


@pytest.fixture
def poor(tmp_path: Path) -> dict[str, str]:
    """The environment of a Python that finds nothing of `LACKING`."""
    (tmp_path / "sitecustomize.py").write_text(HIDE.format(names=set(LACKING)))
    return {**os.environ, "PYTHONPATH": str(tmp_path)}


def test_what_any_step_imports_is_there_where_much_is_lacking(poor: dict[str, str]) -> None:
    """At once or when it runs: the next test runs two of the steps, and some run on a GPU alone."""
    modules = read_modules(ROOT, ["benchmarks"])
    names = sorted({name for own in modules if own.startswith("benchmarks.gpu.") for name in modules[own].imports})
    assert "pipeline.synthetic.scenes" in names  # by a function
    command = [sys.executable, "-c", f"import importlib\nfor name in {names}: importlib.import_module(name)"]
    run = subprocess.run(command, cwd=ROOT, env=poor, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_runs_where_much_is_lacking(poor: dict[str, str], file: Path) -> None:
    """A machine with one GPU and little else: real steps in real processes, and not twice."""

    def command(*arguments: str) -> str:
        line = [sys.executable, "-m", "benchmarks.gpu", *arguments]
        run = subprocess.run(line, cwd=ROOT, env=poor, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stdout + run.stderr
        return run.stdout

    assert len(command("--list").splitlines()) == len(STEPS)
    rehearsal = ("--out", str(file), "--device", "cpu", "--small", "--only", "machine", "exactness")
    command(*rehearsal)
    machine, exactness = lines(file)
    assert machine["figures"]["lacking"] == [name for name in LACKING if name != "pandas"]
    assert exactness["figures"]["every candidate, fp32"]["differ"] == []
    assert exactness["figures"]["nms_groups"]["decisions that differ"] == 0
    assert exactness["figures"]["resize_normalise"]["numbers that differ"] == 0
    assert command(*rehearsal).count("done before") == 2
    assert lines(file) == [machine, exactness]


def test_a_machine_without_a_gpu_is_told_so(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with mock.patch("benchmarks.gpu.__main__.device_name", return_value=None), pytest.raises(SystemExit):
        main(["--out", str(file)])
    assert "no usable GPU" in capsys.readouterr().err
    assert not file.exists()


def test_key_is_all_that_makes_a_step_the_same() -> None:
    key = Key("one", "abc", "H200", False)
    assert key.of({**key._asdict(), "status": "done"})
    assert not any(key.of({**key._asdict(), name: "other"}) for name in key._fields)
