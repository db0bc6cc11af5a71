"""What an answer costs that needs no work: ``python -m benchmarks.bench_startup``.

CPU seconds of a process, the least of a few runs, and how many times those of an empty Python that is: the help of each
command, a typo and a missing file. Which modules they may not import is held by ``tests/jobs/test_commands.py``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from jobs.arguments import COMMANDS

CONFIGS = {
    "annotate": "manifest: {uri: gone}\nmodel: {checkpoint: swin_t_coco}\noutput: {uri: out}\n",
    "evaluate": "predictions: {uri: gone}\nground_truth: {uri: gone.json}\noutput: {uri: out}\n",
    "train": "data: {train: [{uri: gone.json, image_root: .}]}\noutput: {uri: out}\n",
}
MISSING = {
    **{name: ["--config", f"{name}.yaml"] for name in CONFIGS},
    "predict": ["gone.jpg", "--model", "gone.pth", "--out", "out"],
    "convert": ["gone.pth", "out.safetensors"],
    "visualize": ["--annotations", "gone", "--out", "out"],
    "export": ["--annotations", "gone", "--format", "coco", "--out", "out.json"],
    "show": ["gone"],
    "config": ["gone"],
    "demo": ["--out", "."],  # which is not empty
}


def command_lines() -> dict[str, list[str]]:
    """The arguments of Python, by what is asked, for a folder with `CONFIGS` in it."""
    asked = {"maskfleet --help": ["--help"], "maskfleet --version": ["--version"]}
    for name in COMMANDS:
        asked[f"{name}: help"] = [name, "--help"]
        asked[f"{name}: missing file"] = [name, *MISSING[name]]
        if name in CONFIGS:
            asked[f"{name}: no config"] = [name, "--config", "gone.yaml"]
            asked[f"{name}: typo"] = [name, "--config", f"{name}.yaml", "--set", "outptu.uri=x"]
    return {title: ["-m", "maskfleet", *arguments] for title, arguments in asked.items()}


def cpu_seconds(arguments: Sequence[str], folder: Path, repeats: int) -> float:
    """The least of a few runs."""
    return min(_once(arguments, folder) for _ in range(repeats))


def _once(arguments: Sequence[str], folder: Path) -> float:
    before = os.times()
    subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, timeout=300, check=False)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def main() -> None:
    """Print a table, and the same as JSON in its last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="runs of each, of which the least counts")
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for job, text in CONFIGS.items():
            (folder / f"{job}.yaml").write_text(text)
        empty = cpu_seconds(["-c", "pass"], folder, repeats)
        print(f"{'python -c pass':<28} {empty:6.2f} s")
        figures = {"python -c pass": empty}
        for title, arguments in command_lines().items():
            figures[title] = seconds = cpu_seconds(arguments, folder, repeats)
            print(f"{title:<28} {seconds:6.2f} s  {seconds / empty:5.0f} x", flush=True)
    print(json.dumps({title: round(seconds, 3) for title, seconds in figures.items()}))


if __name__ == "__main__":
    main()
