"""Changes modules of the product while a job's processes import them. The product knows nothing of it."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

Patch = Callable[[ModuleType], None]
_ROOT = Path(__file__).resolve().parents[2]


def hooked(folder: Path, module: str) -> dict[str, str]:
    """Variables of the environment with which a job's processes call ``install`` of a module of this package.

    Args:
        folder: gets the ``sitecustomize`` that does it.
    """
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(f"from benchmarks.chaos import {module}\n\n{module}.install()\n")
    return {"PYTHONPATH": f"{folder}{os.pathsep}{_ROOT}"}


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, patches: Mapping[str, Patch]) -> None:
        self._waiting = dict(patches)

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        patch = self._waiting.pop(name, None)
        if patch is None:
            return None
        spec = importlib.util.find_spec(name)
        assert spec is not None
        loader: Any = spec.loader
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            patch(module)

        loader.exec_module = exec_module
        return spec


def install(patches: Mapping[str, Patch]) -> None:
    """Call each function with the module of its name, once that is imported."""
    sys.meta_path.insert(0, _Finder(patches))
