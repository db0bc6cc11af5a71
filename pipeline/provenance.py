"""Which code made an output."""

from __future__ import annotations

import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path

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


def duration(seconds: float) -> str:
    """``3 h 05 min``, ``12 min 30 s`` or ``8.1 s``."""
    if seconds >= 3600:
        return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02d} min"
    if seconds >= 60:
        return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
    return f"{seconds:.1f} s"
