"""A training job that is killed with SIGKILL and started again has the loss curve of one left alone, bit for bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.storage.uris import Uri
from pipeline.train.loop.checkpoint_folder import CheckpointFolder
from testing.ray_nodes import ray_nodes
from tests.train.test_run import training_values

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

NUM_ITERATIONS = 40
KILL_AFTER = 5


@pytest.fixture
def values(tmp_path: Path) -> dict[str, Any]:
    """One worker; 10 epochs of 4 steps; everything random takes part, and each step is saved and drawn."""
    values = training_values(tmp_path)
    del values["data"]["validation"]
    values["augment"]["side"] = 128
    values["model"]["drop_path"] = 0.3
    values["schedule"] = {"epochs": 10, "steps": [6], "warmup_iterations": 3}
    values["output"]["save_every"] = 1
    values["resources"]["workers"] = 1
    return values


def _start(folder: Path, name: str, values: dict[str, Any], ray_address: str | None = None) -> subprocess.Popen[bytes]:
    config = folder / f"{name}.yaml"
    config.write_text(yaml.safe_dump({**values, "output": {**values["output"], "uri": str(folder / name)}}))
    command = [sys.executable, "-m", "jobs.train", "--config", str(config)]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    with (folder / f"{name}.log").open("ab") as log:
        return subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment | {"RAY_USAGE_STATS_ENABLED": "0"} | ({"RAY_ADDRESS": ray_address} if ray_address else {}),
            cwd=Path(__file__).parents[2],
            start_new_session=True,  # a session of its own, which is killed as a whole
        )


def _finished(process: subprocess.Popen[bytes], folder: Path, name: str) -> None:
    assert process.wait(timeout=300) == 0, (folder / f"{name}.log").read_text()[-3000:]


def _steps_done(output: Path) -> int:
    """In the newest state file's name, which is the last thing that is written before ``last``."""
    states = sorted(path.name for path in output.glob("state-*.safetensors"))
    return int(states[-1].split("-")[1].split(".")[0]) if states else 0


def _wait_for_steps(process: subprocess.Popen[bytes], folder: Path, name: str) -> None:
    deadline = time.monotonic() + 300
    while _steps_done(folder / name) < KILL_AFTER:
        assert process.poll() is None, (folder / f"{name}.log").read_text()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _assert_same_ends(folder: Path, *names: str) -> None:
    ends = [CheckpointFolder(Uri(str(folder / name))).load_last() for name in names]
    assert ends[0] is not None
    assert ends[1] is not None
    assert ends[0].position == ends[1].position
    assert ends[0].checkpoint.weights_sha256 == ends[1].checkpoint.weights_sha256
    curves = [_curve(folder / name) for name in names]
    assert sorted(curves[0]) == list(range(1, NUM_ITERATIONS + 1))
    assert curves[0] == curves[1]


def _curve(output: Path) -> dict[int, float]:
    events = EventAccumulator(str(output / "tensorboard"))
    events.Reload()
    return {event.step: event.value for event in events.Scalars("loss/total")}


def test_killed_and_started_again(tmp_path: Path, values: dict[str, Any]) -> None:
    _finished(_start(tmp_path, "straight", values), tmp_path, "straight")
    killed = _start(tmp_path, "killed", values)
    _wait_for_steps(killed, tmp_path, "killed")
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert KILL_AFTER <= _steps_done(tmp_path / "killed") < NUM_ITERATIONS, "it was killed too late"
    _finished(_start(tmp_path, "killed", values), tmp_path, "killed")
    assert "going on after iteration" in (tmp_path / "killed.log").read_text()
    _assert_same_ends(tmp_path, "straight", "killed")


def test_a_node_dies(tmp_path: Path, values: dict[str, Any]) -> None:
    """Two workers on a node each: the job fails, and the same command goes on when there is another node."""
    values["resources"] = {"workers": 2, "gpus_per_worker": 0, "cpus_per_worker": 1.5, "data_cpus_per_task": 0.5}
    values["data"]["batch_size"] = 1
    with ray_nodes(tmp_path / "nodes.log") as nodes:
        _finished(_start(tmp_path, "straight", values, nodes.address), tmp_path, "straight")
        killed = _start(tmp_path, "killed", values, nodes.address)
        _wait_for_steps(killed, tmp_path, "killed")
        nodes.replace(1)
        assert killed.wait(timeout=300) == 1, (tmp_path / "killed.log").read_text()[-3000:]
        assert "exit code 1: TrainingFailed: " in (tmp_path / "killed.log").read_text()
        assert _steps_done(tmp_path / "killed") < NUM_ITERATIONS, "it was killed too late"
        _finished(_start(tmp_path, "killed", values, nodes.address), tmp_path, "killed")
    _assert_same_ends(tmp_path, "straight", "killed")
