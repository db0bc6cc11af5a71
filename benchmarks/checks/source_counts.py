"""What the figures of `house` count in the text of modules: exceptions, calls, names, faces. Standard library only."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from benchmarks.checks.import_graph import Module, Modules, is_below

CAUGHT_EVERYWHERE = {"Exception", "OSError", "ValueError", "KeyError"}
DETECTOR = re.compile(r"swin(?!g)|cascade", re.IGNORECASE)


def exceptions_caught(modules: Modules) -> list[str]:
    """Names in except clauses, with the files that catch them, without those that any program catches."""
    caught: dict[str, set[str]] = {}
    for module in modules.values():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ExceptHandler) and node.type is not None:
                for name in _names(node.type):
                    caught.setdefault(name, set()).add(str(module.path))
    return [f"{name} in {', '.join(sorted(caught[name]))}" for name in sorted(caught.keys() - CAUGHT_EVERYWHERE)]


def redact_calls(modules: Modules) -> list[str]:
    """``path:line`` of each call of a function or method of this name."""
    return [
        f"{module.path}:{node.lineno}"
        for module in modules.values()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call) and "redact" in _names(node.func)
    ]


def _names(node: ast.expr) -> Iterator[str]:
    """The last part of a dotted name, or of each in a tuple."""
    if isinstance(node, ast.Name):
        yield node.id
    elif isinstance(node, ast.Attribute):
        yield node.attr
    elif isinstance(node, ast.Tuple):
        for element in node.elts:
            yield from _names(element)


def naming_the_detector(pipeline: Modules) -> list[str]:
    """Files that name the one detector there is, in code, comments or their own name, outside ``pipeline/model/``."""
    others = [module for name, module in pipeline.items() if not is_below(name, "pipeline.model")]
    return [str(module.path) for module in others if DETECTOR.search(f"{module.path}\n{module.text}")]


def without_face(pipeline: Modules) -> list[str]:
    """Packages whose ``__init__.py`` is missing, says no sentence, or imports something."""
    folders = {folder for module in pipeline.values() for folder in module.path.parents} - {Path()}
    faces = {module.path.parent: module for module in pipeline.values() if module.is_package}
    faults = {folder: _fault_of_face(faces.get(folder)) for folder in sorted(folders)}
    return [f"{folder}/__init__.py {fault}" for folder, fault in faults.items() if fault]


def _fault_of_face(face: Module | None) -> str | None:
    if face is None:
        return "is missing"
    if not re.search(r"\w\W*\.(\s|$)", ast.get_docstring(face.tree) or ""):
        return "has no docstring of a sentence"
    if any(isinstance(node, (ast.Import, ast.ImportFrom)) for node in ast.walk(face.tree)):
        return "imports"
    return None
