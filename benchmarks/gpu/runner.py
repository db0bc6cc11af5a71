"""Runs steps one after the other, each in a process of its own, and keeps what they found. Without torch itself."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.record import DONE, ROOT, Key, Record, Row, source_digest
from benchmarks.gpu.steps import Step

_ERROR_LINES = 12
# Less does not start a process and import torch.
_LEAST_S = 10.0
_ASK = "import torch; print(torch.cuda.get_device_name())"


def device_name(kind: str) -> str | None:
    """The name of the GPU, or of the processor; None where there is no GPU that works.

    Asked for in a process that ends: what holds a context is lost with it.
    """
    if kind == "cpu":
        return f"{platform.machine()} CPU"
    asked = subprocess.run([sys.executable, "-c", _ASK], capture_output=True, text=True, check=False)
    return asked.stdout.strip() or None


class Runner:
    """Runs steps that are not in a record yet.

    Args:
        record: what was run before; gets what is run now.
        kind: ``cuda`` or ``cpu``.
        device: its name.
        small: whether to run the small model.
        budget_s: a step that would go on for longer is ended, and those behind it are left for another run.
        program: what runs a step.
    """

    def __init__(
        self,
        record: Record,
        kind: str,
        device: str,
        small: bool,
        budget_s: float,
        program: Sequence[str] = (sys.executable, "-m", "benchmarks.gpu.bench"),
    ) -> None:
        self._record = record
        self._kind = kind
        self._device = device
        self._small = small
        self._end = time.monotonic() + budget_s
        self._program = program

    def run(self, steps: Sequence[Step]) -> list[Row]:
        """A row for each step that was run, now or before."""
        rows = []
        for step in steps:
            key = Key(step.name, source_digest(step.path), self._device, self._small)
            known = self._record.finished(key)
            left_s = self._end - time.monotonic()
            if known is not None:
                self._say(step, "done before")
                rows.append(known)
            elif step.needs_gpu and self._kind != "cuda":
                self._say(step, "needs a GPU")
            elif left_s < _LEAST_S:
                self._say(step, "left for another run: the time is up")
            else:
                row = self._measure(step, key, min(step.limit_s, left_s))
                self._record.add(row)
                rows.append(row)
                self._say(step, f"{row['status']} in {row['seconds']} s", *row.get("error", [])[-3:])
        return rows

    def _measure(self, step: Step, key: Key, limit_s: float) -> Row:
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            figures, output = Path(folder, "figures.jsonl"), Path(folder, "output.txt")
            command = [*self._program, step.name, "--device", self._kind, "--out", str(figures)]
            command += ["--small"] * self._small
            status = _run(command, output, limit_s)
            row: Row = {**key._asdict(), "status": status, "seconds": round(time.monotonic() - started, 1)}
            if status != DONE:
                row["error"] = output.read_text(encoding="utf-8", errors="replace").splitlines()[-_ERROR_LINES:]
            return {**row, "commit": _commit(), "figures": _figures(figures)}

    def _say(self, step: Step, *lines: str) -> None:
        print(f"{step.name:12s} " + "\n    ".join(lines), flush=True)


def _run(command: list[str], output: Path, limit_s: float) -> str:
    """Run a command with its output in a file; what became of it."""
    with output.open("w", encoding="utf-8") as file:
        # A session of its own: what it starts ends with it.
        child = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file, start_new_session=True)
        try:
            code = child.wait(limit_s)
        except subprocess.TimeoutExpired:
            return f"timed out after {limit_s:.0f} s"
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return DONE if code == 0 else f"failed with exit code {code}"


def _figures(path: Path) -> dict[str, Any]:
    """What a step reported; its last line may be torn."""
    figures: dict[str, Any] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            figures.update(json.loads(line))
        except ValueError:
            continue
    return figures


def _commit() -> str | None:
    """Of the sources, for people; None where there is no git."""
    try:
        asked = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    return asked.stdout.strip() or None
