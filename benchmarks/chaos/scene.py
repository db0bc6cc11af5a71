"""Small pictures, a small model, and the real annotate job on them in subprocesses."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.fs as pafs
import yaml
from PIL import Image

from benchmarks.chaos.undisturbed import undisturbed_rows
from benchmarks.chaos.verdict import Rows, read_output
from benchmarks.support.random_model import MODEL_SEED, random_model
from pipeline.annotate.config import AnnotateConfig
from pipeline.model.files.checkpoints import save_checkpoint
from pipeline.model.settings import TestSettings
from pipeline.synthetic.scenes import render_scene

ROOT = Path(__file__).resolve().parents[2]
HEIGHT, WIDTH = 64, 80
ATTEMPT_TIMEOUT_S = 600.0
LEASE_S = 6.0  # a lock that is lost on a busy machine proves nothing; that of a process that died is taken at once
BAD_IMAGES = 3
# The agents belong to the node: it dies with them.
_NOT_BUSY = ("ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent")
_SETTINGS = TestSettings(short_side=64, long_side=128, proposals=50, score_threshold=0.3, nms_iou=0.3, max_detections=8)


class Hung(RuntimeError):
    """An attempt did not end within its time."""


@dataclass(frozen=True)
class ChaosWorld:
    """A folder with ``images/``, a checkpoint and what becomes of them.

    Attributes:
        folder: root of all of it.
        expected: the rows that a run should write, by image id.
    """

    folder: Path
    expected: Rows

    @property
    def images(self) -> Path:
        """The manifest: a folder of pictures."""
        return self.folder / "images"


def make_scene(folder: Path, num_images: int) -> ChaosWorld:
    """Render the pictures, damage some more, make the model, and see what the stages make of them undisturbed.

    Raises:
        RuntimeError: they do not do what they should.
    """
    images = folder / "images"
    images.mkdir(parents=True)
    for i in range(num_images):
        Image.fromarray(render_scene((0, i), (HEIGHT, WIDTH)).pixels).save(images / f"scene_{i:04d}.jpg", quality=90)
    whole = (images / "scene_0000.jpg").read_bytes()
    (images / "scene_0003_truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (images / "scene_0010_empty.jpg").write_bytes(b"")
    (images / "scene_0020_text.jpg").write_bytes(b"<html><body>404 not found</body></html>")
    save_checkpoint(replace(random_model(MODEL_SEED), settings=_SETTINGS), folder / "model.safetensors")
    rows = undisturbed_rows(AnnotateConfig.model_validate(_config(folder, images.as_uri(), str(folder / "unused"))))
    failed = [row["image_id"] for row in rows if row["status"] == "failed"]
    if len(rows) != num_images + BAD_IMAGES or len(failed) != BAD_IMAGES:
        raise RuntimeError(f"undisturbed: {len(rows)} rows, failed: {failed}")
    return ChaosWorld(folder, {row["image_id"]: row for row in rows})


def png(height: int, width: int) -> bytes:
    """A picture of a size of its own."""
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)).save(buffer, "png")
    return buffer.getvalue()


def _config(folder: Path, manifest: str, output: str) -> dict[str, dict[str, Any]]:
    return {
        "manifest": {"uri": manifest, "format": "folder"},
        "images": {"max_attempts": 12},
        "model": {"checkpoint": str(folder / "model.safetensors"), "batch_size": 2},
        "resources": {"actors": 1, "images_per_block": 4, "fetch_cpus_per_task": 0.5},
        "output": {"uri": output, "images_per_file": 8, "max_failed_fraction": 1.0, "lease_s": LEASE_S},
    }


class Job:
    """One output, and the job that is run on it until it ends well.

    Attributes:
        attempts: how often it was started.
        exit_code: of the last attempt; negative if it was killed, 1 before the first.
        at_risk_s: the most work that an interruption can have cost, in seconds; see `interrupted`.

    Args:
        folder: the world's; log, config and local output go into it.
        name: of this job; its log, config and local output are called so.
        manifest: URI of the images.
        output: URI; a local folder if not given.
        environment: variables that differ from this process's.
        settings: sections and keys of the config that differ.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        manifest: str,
        output: str | None = None,
        environment: Mapping[str, str] | None = None,
        settings: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        self.output = folder / f"{name}-output"
        self.log = folder / f"{name}.log"
        self._config = folder / f"{name}.yaml"
        # Ray's own folder: not the machine's, where others' clusters are found, and short, for the sockets' sake.
        self._ray_folder = Path(tempfile.mkdtemp(prefix="mf"))
        self._environment = {
            **os.environ,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_TMPDIR": str(self._ray_folder),
            "RAY_worker_niceness": "0",  # or other work on the machine could starve the job past its time limit
            "PYTHONPATH": str(ROOT),
            **(environment or {}),
        }
        self._started: set[psutil.Process] = set()
        self._started_at = 0.0
        self.attempts = 0
        self.exit_code = 1
        self.at_risk_s = 0.0
        config = _config(folder, manifest, output or str(self.output))
        for section, values in (settings or {}).items():
            config[section].update(values)
        self._config.write_text(yaml.safe_dump(config))

    def start(self, log_file: Path | None = None) -> subprocess.Popen[bytes]:
        """One attempt, in a process group of its own.

        Args:
            log_file: what it says goes there; to `log` if not given.
        """
        self.attempts += 1
        self._started_at = time.time()
        with open(log_file or self.log, "ab") as log:
            log.write(f"\n--- attempt {self.attempts}\n".encode())
            log.flush()
            return subprocess.Popen(
                self._command(), cwd=ROOT, env=self._environment, stdout=log, stderr=log, start_new_session=True
            )

    def beside(self, *arguments: str) -> tuple[int, str]:
        """The same command beside an attempt, with further arguments; exit code and what it said."""
        command = [*self._command(), *arguments]
        options: dict[str, Any] = {"capture_output": True, "text": True, "timeout": ATTEMPT_TIMEOUT_S}
        ended = subprocess.run(command, cwd=ROOT, env=self._environment, check=False, **options)
        return ended.returncode, ended.stdout + ended.stderr

    def state(self) -> str:
        """What run.json of the local output says; "" if there is none."""
        with suppress(FileNotFoundError):
            return str(json.loads((self.output / "run.json").read_bytes())["state"])
        return ""

    def _command(self) -> list[str]:
        return [sys.executable, "-m", "jobs.annotate", "--config", str(self._config)]

    def run(self, disturb: Callable[[subprocess.Popen[bytes]], None]) -> int:
        """One attempt with something going on beside it; its exit code.

        Args:
            disturb: returns when it is done, or when the process has ended.

        Raises:
            Hung: and the attempt is killed.
        """
        process = self.start()
        started = time.monotonic()
        try:
            disturb(process)
            self.exit_code = process.wait(max(1.0, started + ATTEMPT_TIMEOUT_S - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise Hung(f"attempt {self.attempts} had not ended after {ATTEMPT_TIMEOUT_S:.0f} s") from None
        finally:
            self.remember(process.pid)
            process.kill()
            process.wait()
        return self.exit_code

    def run_to_the_end(self, max_attempts: int = 6) -> int:
        """Unless the last attempt ended with 0, run again and again until one does; the last exit code."""
        for _ in range(max_attempts):
            if self.exit_code == 0:
                break
            self.run(lambda process: None)
        return self.exit_code

    def remember(self, pid: int) -> list[psutil.Process]:
        """Ray's processes of an attempt as of now, to be removed at the end."""
        with suppress(psutil.NoSuchProcess):
            children = psutil.Process(pid).children(recursive=True)
            self._started.update(children)
            return children
        return []

    def workers(self, pid: int) -> list[psutil.Process]:
        """Ray's processes of an attempt that work on a task or hold an actor."""
        titles = {child: command_line(child) for child in self.remember(pid)}
        return [
            child for child, title in titles.items() if title.startswith("ray::") and not title.startswith(_NOT_BUSY)
        ]

    def part_files(self) -> set[str]:
        """Names of the data files in the local output."""
        with suppress(FileNotFoundError):
            return {name for name in os.listdir(self.output / "data") if name.startswith("part-")}
        return set()

    def files(self) -> int:
        """How many data files the local output has."""
        return len(self.part_files())

    def interrupted(self) -> None:
        """An attempt is ended now: what it did since its last file was written, or since its start, may be lost."""
        times = [self._started_at]
        with suppress(FileNotFoundError):
            times += [path.stat().st_mtime for path in (self.output / "data").iterdir()]
        self.at_risk_s = max(self.at_risk_s, time.time() - max(times))

    def read(self) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Rows and report of the local output."""
        return read_output(pafs.LocalFileSystem(), str(self.output))

    def clean_up(self) -> int:
        """Kill what attempts left running, and remove Ray's files; how many processes there were."""
        left = [process for process in self._started if process.is_running()]
        _, left = psutil.wait_procs(left, timeout=5)
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        shutil.rmtree(self._ray_folder, ignore_errors=True)
        return len(left)


def command_line(process: psutil.Process) -> str:
    """Empty if it has ended."""
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""
