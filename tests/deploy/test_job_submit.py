"""The job as ``ray job submit`` runs it on a cluster of its own, with and without token authentication.

Ray knows success and failure only; the last line of the log and run.json say which failure it was.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from PIL import Image

from pipeline.model.categories import Category
from pipeline.model.files.checkpoints import save_checkpoint
from testing.small_model import TINY, TINY_SETTINGS, picture, random_checkpoint

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1800)]

REPOSITORY = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
STARTUP_TIMEOUT_S = 240.0
JOB_TIMEOUT_S = 600.0
MARK = "MASKFLEET_TEST_CLUSTER"  # inherited by every process of the cluster, so that each can be found


@dataclass(frozen=True)
class Ended:
    """A job that is over: what the command returned, and what the cluster says of it."""

    returncode: int
    status: str
    exit_code: int
    log: str

    @property
    def last_line(self) -> str:
        return self.log.strip().splitlines()[-1]


@dataclass(frozen=True)
class Head:
    """A cluster of one node, and the environment of whoever talks to it."""

    address: str
    environment: Mapping[str, str]
    token: str | None

    def get(self, path: str, token: str | None) -> Any:
        """JSON from the head's HTTP server."""
        request = urllib.request.Request(self.address + path)
        if token:
            request.add_header("Authorization", f"Bearer {token}")
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=30) as answer:
            return json.load(answer)

    def submit(self, working_dir: Path, *arguments: str, **environment: str) -> Ended:
        """``ray job submit``, waiting for the job's end."""
        job = f"annotate-{uuid.uuid4().hex[:8]}"
        command = [str(BIN / "ray"), "job", "submit", "--address", self.address, "--submission-id", job]
        command += ["--working-dir", str(working_dir), "--", "python", "-m", "jobs.annotate", *arguments]
        done = subprocess.run(
            command,
            env={**self.environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=JOB_TIMEOUT_S,
            check=False,
        )
        try:
            details = self.get(f"/api/jobs/{job}", self.token)
            log = self.get(f"/api/jobs/{job}/logs", self.token)["logs"]
        except urllib.error.HTTPError as error:
            return Ended(done.returncode, f"HTTP {error.code}", -1, done.stdout)
        return Ended(done.returncode, details["status"], details["driver_exit_code"], log)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in sockets:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in sockets]


def _environment(token_file: Path | None, mark: str) -> dict[str, str]:
    """Nothing of a Ray that may run beside; the mode is said, because Ray looks for token files by itself."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTEST_"))}
    own |= {"PATH": f"{BIN}{os.pathsep}{own['PATH']}", MARK: mark, "RAY_USAGE_STATS_ENABLED": "0"}
    if token_file is None:
        return own | {"RAY_AUTH_MODE": "disabled"}
    return own | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token_file)}


def _end_processes(mark: str) -> None:
    """The processes that carry the mark, whoever their parents are, and no others."""

    def alive() -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if process.environ().get(MARK) == mark and process.pid != os.getpid():
                    found.append(process)
        return found

    give_up_at = time.monotonic() + 30
    while (left := alive()) and time.monotonic() < give_up_at:
        for process in left:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(left, timeout=5)
    assert not left, left


@contextmanager
def start_head(token: str | None) -> Iterator[Head]:
    """``ray start --head`` with ports and a folder of its own; all its processes end with the context."""
    mark = uuid.uuid4().hex
    # Not pytest's folder: the sockets' paths must stay below 107 characters.
    with tempfile.TemporaryDirectory(prefix="mf-ray-", ignore_cleanup_errors=True) as name:
        token_file = None
        if token is not None:
            token_file = Path(name, "token")
            token_file.touch(mode=0o600)
            token_file.write_text(token)
        names = ["port", "dashboard-port", "dashboard-agent-listen-port", "ray-client-server-port"]
        names += ["metrics-export-port", "runtime-env-agent-port", "dashboard-agent-grpc-port"]
        ports = dict(zip(names, _free_ports(len(names)), strict=True))
        command = [str(BIN / "ray"), "start", "--head", "--block", "--num-cpus=3", "--num-gpus=0"]
        command += [f"--temp-dir={name}", f"--object-store-memory={128 << 20}", "--node-ip-address=127.0.0.1"]
        command += ["--include-dashboard=true", "--dashboard-host=127.0.0.1", "--disable-usage-stats"]
        command += [f"--{option}={port}" for option, port in ports.items()]
        environment = _environment(token_file, mark)
        log = Path(name, "start.log")
        head = Head(f"http://127.0.0.1:{ports['dashboard-port']}", environment, token)
        try:
            with log.open("w") as file:
                process = subprocess.Popen(command, env=environment, stdout=file, stderr=file, start_new_session=True)
            _wait_until_it_answers(process, head, log)
            yield head
        finally:
            _end_processes(mark)
            process.wait(timeout=10)


def _wait_until_it_answers(process: subprocess.Popen[bytes], head: Head, log: Path) -> None:
    give_up_at = time.monotonic() + STARTUP_TIMEOUT_S
    while time.monotonic() < give_up_at and process.poll() is None:
        with suppress(OSError):
            head.get("/api/jobs/", head.token)
            return
        time.sleep(0.5)
    raise RuntimeError(f"the head does not answer (status {process.poll()}):\n{log.read_text()}")


@pytest.fixture(scope="module")
def working_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is shipped: the code and three configs. Pictures, model and output lie elsewhere."""
    folder = tmp_path_factory.mktemp("job")
    pictures, shipped = folder / "pictures", folder / "shipped"
    pictures.mkdir()
    for package in ("pipeline", "jobs"):
        shutil.copytree(REPOSITORY / package, shipped / package, ignore=shutil.ignore_patterns("__pycache__"))
    categories = (Category(1, "ball"), Category(2, "tile"), Category(3, "kite"))
    save_checkpoint(random_checkpoint(TINY, categories, TINY_SETTINGS), folder / "tiny.safetensors")
    for i in range(6):
        Image.fromarray(picture(48, 64, seed=i)).save(pictures / f"{i}.png")
    config: dict[str, Any] = {
        "manifest": {"uri": str(pictures), "format": "folder"},
        "model": {"checkpoint": str(folder / "tiny.safetensors"), "batch_size": 2},
        "output": {"uri": str(folder / "unused"), "max_failed_fraction": 0.1},
    }
    (shipped / "good.yaml").write_text(yaml.safe_dump(config))
    shutil.copytree(pictures, folder / "damaged")
    for i in range(2):
        (folder / "damaged" / f"{i}.png").write_bytes(b"not a picture")
    damaged = {**config, "manifest": {"uri": str(folder / "damaged"), "format": "folder"}}
    (shipped / "damaged.yaml").write_text(yaml.safe_dump(damaged))
    (shipped / "bad.yaml").write_text(yaml.safe_dump({**config, "modle": {}}))
    return shipped


@pytest.fixture(scope="module", params=["without token", "with token"])
def head(request: pytest.FixtureRequest) -> Iterator[Head]:
    token = None if request.param == "without token" else secrets.token_hex(32)
    with start_head(token) as started:
        yield started


def _run(head: Head, working_dir: Path, config: str, output: Path) -> Ended:
    return head.submit(working_dir, "--config", config, "--set", f"output.uri={output}")


def test_success(head: Head, working_dir: Path, tmp_path: Path) -> None:
    ended = _run(head, working_dir, "good.yaml", tmp_path)
    assert (ended.returncode, ended.status, ended.exit_code) == (0, "SUCCEEDED", 0), ended.log
    assert "exit code 0: finished" in ended.last_line
    report = json.loads((tmp_path / "run.json").read_text())
    assert report["state"] == "finished"
    assert report["images"] == {"manifest": 6, "annotated": 6, "failed": 0, "deleted": 0}
    assert report["cluster"]["cpus"] == 3  # the cluster's, not a Ray of its own


def test_more_failures_than_allowed(head: Head, working_dir: Path, tmp_path: Path) -> None:
    ended = _run(head, working_dir, "damaged.yaml", tmp_path)
    assert (ended.returncode, ended.status, ended.exit_code) == (1, "FAILED", 3), ended.log
    assert "exit code 3: 33.33% of the images failed" in ended.last_line
    report = json.loads((tmp_path / "run.json").read_text())
    assert report["state"] == "too_many_failures"
    assert report["images"] == {"manifest": 6, "annotated": 4, "failed": 2, "deleted": 0}


def test_bad_config(head: Head, working_dir: Path, tmp_path: Path) -> None:
    ended = _run(head, working_dir, "bad.yaml", tmp_path)
    assert (ended.returncode, ended.status, ended.exit_code) == (1, "FAILED", 2), ended.log
    assert "exit code 2: ConfigError" in ended.last_line
    assert "modle" in ended.last_line
    assert not list(tmp_path.iterdir())


def test_only_the_token_opens_the_cluster(head: Head, working_dir: Path) -> None:
    if head.token is None:
        assert head.get("/api/jobs/", None) is not None
        return
    for token in (None, secrets.token_hex(32)):
        with pytest.raises(urllib.error.HTTPError) as refused:
            head.get("/api/jobs/", token)
        assert refused.value.code in (401, 403)
    ended = head.submit(working_dir, "--config", "good.yaml", RAY_AUTH_MODE="disabled")
    assert ended.returncode != 0
    assert ended.status == "HTTP 404"  # no such job
