"""The project's modules and who imports whom, read from the source: nothing is imported. Standard library only.

Imports by a string (importlib) are not seen, and an import below ``if TYPE_CHECKING`` is none.
"""

from __future__ import annotations

import ast
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

Graph = Mapping[str, Collection[str]]


@dataclass(frozen=True)
class Module:
    """One source file.

    Attributes:
        path: from the project's root.
        text: as it stands in the file.
        imports: dotted names, those inside functions too: a module's own name where it is one of the project, else
            what stands after ``from`` or ``import``.
        imports_at_once: those of them that importing the module executes.
    """

    path: Path
    text: str
    tree: ast.Module
    imports: frozenset[str]
    imports_at_once: frozenset[str]

    @property
    def is_package(self) -> bool:
        """Whether this is a folder's ``__init__.py``."""
        return self.path.name == "__init__.py"


# By dotted name; a package goes by its folder's.
Modules = Mapping[str, Module]


def read_modules(root: Path, packages: Collection[str]) -> Modules:
    """All modules below the folders `packages` of `root`.

    Raises:
        SyntaxError: a file is no Python.
    """
    paths = sorted(path.relative_to(root) for package in packages for path in (root / package).rglob("*.py"))
    names = {_dotted(path): path for path in paths}
    return {name: _read_module(root, path, names) for name, path in names.items()}


def _dotted(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def _read_module(root: Path, path: Path, names: Collection[str]) -> Module:
    text = (root / path).read_text(encoding="utf-8")
    tree = ast.parse(text, str(path))
    package = path.parent.parts
    everywhere = {name for node in _import_statements(tree, True) for name in _targets(node, package, names)}
    at_once = {name for node in _import_statements(tree, False) for name in _targets(node, package, names)}
    return Module(path, text, tree, frozenset(everywhere), frozenset(at_once))


def _import_statements(node: ast.AST, in_functions: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    for child in _executed(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            yield child
        elif in_functions or not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from _import_statements(child, in_functions)


def _executed(node: ast.AST) -> Iterator[ast.AST]:
    """The statements directly below `node`, without those for type checkers only."""
    children = node.orelse if isinstance(node, ast.If) and _asks_for_types(node.test) else ast.iter_child_nodes(node)
    return (child for child in children if isinstance(child, (ast.stmt, ast.ExceptHandler, ast.match_case)))


def _asks_for_types(test: ast.expr) -> bool:
    return ast.unparse(test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def _targets(node: ast.Import | ast.ImportFrom, package: tuple[str, ...], names: Collection[str]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
        return
    # One dot is the file's own package, each further dot the one around it.
    around = package[: len(package) - node.level + 1] if node.level else ()
    source = ".".join((*around, *([node.module] if node.module else [])))
    for alias in node.names:
        name = f"{source}.{alias.name}"
        yield name if name in names else source


def is_below(name: str, package: str) -> bool:
    """Whether a dotted name is `package` or lies in it."""
    return name == package or name.startswith(f"{package}.")


def importers(modules: Modules) -> dict[str, list[str]]:
    """Who imports each of `modules`, inside functions too."""
    found: dict[str, list[str]] = {name: [] for name in modules}
    for name, module in modules.items():
        for target in module.imports & modules.keys() - {name}:
            found[target].append(name)
    return found


def circles(modules: Modules) -> list[list[str]]:
    """Groups of modules that all reach one another by imports, inside functions too."""
    graph = {name: module.imports & modules.keys() - {name} for name, module in modules.items()}
    reached = {name: shortest_paths(graph, name).keys() for name in graph}
    groups = {frozenset(other for other in reached[name] if name in reached[other]) for name in graph}
    return sorted(sorted(group) for group in groups if group)


def loading_graph(modules: Modules) -> dict[str, set[str]]:
    """What importing a module executes: also the packages that it and its imports lie in, and other libraries."""
    return {name: _loaded_by(name, module, modules) - {name} for name, module in modules.items()}


def _loaded_by(name: str, module: Module, modules: Modules) -> set[str]:
    around = {package for loaded in (name, *module.imports_at_once) for package in _with_packages(loaded)}
    ours = {package.partition(".")[0] for package in modules}
    return {loaded for loaded in around if loaded in modules or loaded.partition(".")[0] not in ours}


def _with_packages(name: str) -> Iterator[str]:
    parts = name.split(".")
    return (".".join(parts[:length]) for length in range(1, len(parts) + 1))


def shortest_paths(graph: Graph, start: str) -> dict[str, tuple[str, ...]]:
    """A shortest way from `start` to each name that it reaches, both ends included; to itself only by a circle."""
    paths: dict[str, tuple[str, ...]] = {}
    waiting: deque[tuple[str, ...]] = deque([(start,)])
    while waiting:
        path = waiting.popleft()
        for target in sorted(set(graph.get(path[-1], ())) - paths.keys()):
            paths[target] = (*path, target)
            waiting.append(paths[target])
    return paths
