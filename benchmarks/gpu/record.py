"""The file of what was measured: a JSON line for each step that was run, so that a run goes on where one ended.

A line counts for the sources that it was measured with, so an edit of the model or of a step has that step run again.
Standard library only.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
# What steps run; a step's own module is added.
SHARED = (
    "benchmarks/gpu/bench.py",
    "benchmarks/gpu/inputs.py",
    "benchmarks/support",
    "pipeline/images",
    "pipeline/masks",
    "pipeline/model",
    "testing/small_model.py",
    "tests/model/compare.py",
    "tests/model/golden_cases.py",
    "tests/model/golden_weights.py",
    "tests/model/kernels/cases.py",
)
DONE = "done"

Row = dict[str, Any]


class Key(NamedTuple):
    """What makes a step the same step.

    Attributes:
        step: its name.
        source: digest of the sources that it runs.
        device: name of the device.
        small: whether the model was the small one, whose times mean nothing.
    """

    step: str
    source: str
    device: str
    small: bool

    def of(self, row: Row) -> bool:
        """Whether a line is this step's."""
        return all(row.get(name) == value for name, value in self._asdict().items())


def source_digest(module: str, root: Path = ROOT) -> str:
    """The beginning of a sha256 over the Python files that a step in this module runs."""
    total = hashlib.sha256()
    for file in sorted(_python_files(root, [*SHARED, module.replace(".", "/") + ".py"])):
        total.update(str(file.relative_to(root)).encode() + b"\0" + file.read_bytes())
    return total.hexdigest()[:16]


def _python_files(root: Path, places: Iterable[str]) -> set[Path]:
    found: set[Path] = set()
    for place in places:
        found.update([root / place] if place.endswith(".py") else (root / place).rglob("*.py"))
    return found


class Record:
    """The lines of a file, which need not exist.

    A line that a killed run left torn is no line; the next one begins below it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[Row] = []
        text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        self._is_torn = bool(text) and not text.endswith("\n")
        for line in text.splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict):
                self.rows.append(row)

    def finished(self, key: Key) -> Row | None:
        """The line of this step, if it was run to its end."""
        return next((row for row in reversed(self.rows) if key.of(row) and row.get("status") == DONE), None)

    def add(self, row: Row) -> None:
        """Append a line, on disk when this returns."""
        self.rows.append(row)
        with self.path.open("a", encoding="utf-8") as file:
            file.write("\n" * self._is_torn + json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._is_torn = False
