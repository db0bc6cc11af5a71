"""The commands, what each is called by whoever typed it, and values that several check in the same way."""

from __future__ import annotations

import argparse
import os
import re
import sys
from shutil import which
from typing import NamedTuple


class Command(NamedTuple):
    """A command of ``maskfleet``.

    Attributes:
        job: the module of ``jobs/`` whose ``main`` it calls.
        about: what it does, in half a line.
    """

    job: str
    about: str


# In the order of a first day.
COMMANDS = {
    "demo": Command("demo", "annotate and evaluate rendered scenes, in two minutes, on this machine"),
    "predict": Command("predict", "segment a few pictures, without Ray"),
    "annotate": Command("annotate", "annotate every image of a manifest, here or on a cluster"),
    "show": Command("show", "how a run is doing, or how it ended: books, failures, speed, files"),
    "compact": Command("compact", "join the small files of an output, where nights leave many"),
    "publish": Command("publish", "register an output's files in its Delta or Iceberg table"),
    "compare": Command("compare", "two outputs, or a night with the nights before: what changed in the labels"),
    "visualize": Command("visualize", "draw what was found on the pictures"),
    "export": Command("export", "annotations in other tools' formats: COCO, YOLO, CVAT, ..."),
    "evaluate": Command("evaluate", "compare annotations with ground truth: metrics and a report"),
    "train": Command("train", "train a detector on COCO files and annotations"),
    "convert": Command("convert_checkpoint", "any known checkpoint to safetensors"),
    "config": Command("config", "list the ready configs, or print one to start from"),
}


def typed(job: str) -> str:
    """What starts a job, as the user of this process types it: ``maskfleet annotate``, ``python -m jobs.annotate``.

    A script that the shell would not find (``make demo`` starts one) is called with its folder.
    """
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    started = spec.name if spec else ""
    command = next((name for name, command in COMMANDS.items() if command.job == job), None)
    if command is None or started.startswith("jobs."):
        return f"python -m jobs.{job}"
    if started == "maskfleet.__main__":
        return f"python -m maskfleet {command}"
    by_path = os.path.basename(sys.argv[0]) == "maskfleet" and which("maskfleet") is None
    return f"{sys.argv[0] if by_path else 'maskfleet'} {command}"


def job_parser(job: str, description: str | None, epilog: str | None = None) -> argparse.ArgumentParser:
    """A parser that calls its job as the user does, in its usage, errors and help.

    Args:
        job: the module's name in ``jobs/``.
        description: the module's docstring, which says ``python -m jobs.JOB``.
        epilog: what stands below the options, line by line.
    """
    said = re.sub(rf"python -m jobs\.{job}\b", typed(job), description or "").replace("``", "`")
    return argparse.ArgumentParser(
        prog=typed(job), description=said, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def add_config(parser: argparse.ArgumentParser, example: str) -> None:
    """``--config`` and ``--set``.

    Args:
        parser: of a job that has a config.
        example: of a setting, as a shell takes it.
    """
    parser.add_argument("--config", required=True, metavar="FILE", help=f"YAML; `{typed('config')}` has ready ones")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=f"e.g. {example}")


def positive(text: str) -> int:
    """A count of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not positive")
    return value


def score(text: str) -> float:
    """A number from 0 to 1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a score from 0 to 1")
    return value
