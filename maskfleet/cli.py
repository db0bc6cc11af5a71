"""The command ``maskfleet``: a name for each job, and nothing of a job but its name before it is asked for.

``maskfleet annotate ARGUMENTS`` is ``python -m jobs.annotate ARGUMENTS``, from any folder.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
_OURS = ("jobs", "maskfleet", "pipeline")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code."""
    if argv is None:
        _see_no_others()
    name, *arguments = [*(sys.argv[1:] if argv is None else argv)] or [""]
    from jobs.arguments import COMMANDS
    from jobs.ending import BAD_INPUT, OK, say

    if name in COMMANDS:
        return import_module(f"jobs.{COMMANDS[name].job}").main(arguments)
    if name in ("-h", "--help", "help"):
        say(_overview())
        return OK
    if name in ("-V", "--version"):
        from maskfleet import __version__

        say(f"maskfleet {__version__}")
        return OK
    if not name:
        print(_overview(), file=sys.stderr)
        return BAD_INPUT
    from pipeline.config.base import did_you_mean

    advice = did_you_mean(name, list(COMMANDS)) or f"; there are: {', '.join(COMMANDS)}"
    print(f"maskfleet: no such command: {name!r}{advice}", file=sys.stderr)
    return BAD_INPUT


def _overview() -> str:
    from jobs.arguments import COMMANDS

    width = max(map(len, COMMANDS))
    return "\n".join(
        [
            "usage: maskfleet COMMAND ...",
            "",
            "Instance masks for huge image collections.",
            "",
            *(f"  {name:<{width}}  {command.about}" for name, command in COMMANDS.items()),
            "",
            "maskfleet COMMAND --help has the options of one, maskfleet --version says which release this is.",
        ]
    )


def _see_no_others() -> None:
    """Packages of the user's that are called like ours are not looked for, here and in the processes started here.

    ``python -m`` puts the current folder first on the path, and PYTHONPATH does the same with its own.
    """
    listed = [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]
    namesakes = {place for folder in ("", *listed) if _holds_namesake(place := _resolved(folder))}
    if not namesakes:
        return
    sys.path[:] = [folder for folder in sys.path if _resolved(folder) not in namesakes]
    if "PYTHONPATH" in os.environ:  # in which nothing between two colons is the current folder too
        left = [folder for folder in listed if _resolved(folder) not in namesakes]
        os.environ["PYTHONPATH"] = os.pathsep.join(left)


def _resolved(folder: str) -> str:
    try:
        return os.path.realpath(folder)
    except FileNotFoundError:  # the current folder was removed: what is relative to it is nowhere
        return folder


def _holds_namesake(folder: str) -> bool:
    files = [Path(folder, file) for name in _OURS for file in (f"{name}/__init__.py", f"{name}.py")]
    return Path(folder) != _ROOT and any(file.is_file() for file in files)
