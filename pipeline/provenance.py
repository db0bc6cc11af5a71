"""Which run of which code made an output."""

from __future__ import annotations

import subprocess
import time
import uuid
from datetime import datetime, timezone
from functools import cache
from importlib import metadata
from pathlib import Path

_TIME = "%Y%m%dT%H%M%S"
PACKAGES = ("maskfleet", "ray", "torch", "torchvision", "timm", "pyarrow", "numpy", "pillow", "pycocotools", "obstore")


@cache
def code_version() -> str:
    """The package's version, with the commit (and ``+changes``) where it runs from a git checkout."""
    version = package_versions().get("maskfleet", "unknown")
    root = Path(__file__).resolve().parent.parent

    def git(*args: str) -> str:
        return subprocess.run(["git", "-C", str(root), *args], capture_output=True, text=True, check=True).stdout

    try:
        if Path(git("rev-parse", "--show-toplevel").strip()).resolve() != root:
            return version
        changed = "+changes" if git("status", "--porcelain", "--untracked-files=no").strip() else ""
        return f"{version}+{git('rev-parse', '--short=12', 'HEAD').strip()}{changed}"
    except (OSError, subprocess.CalledProcessError):
        return version


def package_versions() -> dict[str, str]:
    """Versions of the packages whose behaviour an output depends on, where installed."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def new_run_id() -> str:
    """For one run of a job: the time in UTC, and letters that no other run has."""
    return f"{time.strftime(_TIME, time.gmtime())}-{uuid.uuid4().hex[:8]}"


def begun_at(run_id: str) -> datetime | None:
    """When a run began, as its id from `new_run_id` says, UTC; ``None`` for any other id."""
    try:
        return datetime.strptime(run_id.partition("-")[0], _TIME).replace(tzinfo=timezone.utc)
    except ValueError:
        return None
