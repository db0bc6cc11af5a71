"""The structure of the project in figures, from its imports: ``python -m benchmarks.checks.house``.

It keeps what a stranger needs: few places to look in, arrows between packages that point one way, and one home for
each concern. Each line of the table is a figure, its value, its goal, and ``ok`` or ``NOT``; below a missed goal stand
the first ten places that count. Exit code 1 if a goal is missed.

A change of structure is a change of `FLOORS` or `MAY_IMPORT`: a new folder in ``pipeline/`` gets its floor there.
Standard library only, and nothing of the project is imported, so any Python from 3.10 runs it.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.checks.import_graph import (
    Modules,
    circles,
    importers,
    is_below,
    loading_graph,
    read_modules,
    shortest_paths,
)
from benchmarks.checks.source_counts import exceptions_caught, naming_the_detector, redact_calls, without_face

# The goals: each figure may be this large.
LOOSE_MODULES = 2
FILES_IN_A_FOLDER = 16
CIRCLES = 0
ROOMS_WITHOUT_FLOOR = 0
UPWARD_IMPORTS = 0
FORBIDDEN_IMPORTS = 0
# Not wrong in itself (each kind of manifest is such a module); many of them are one thing cut in pieces. To be lowered
# as they are merged.
MODULES_WITH_ONE_IMPORTER = 65
EXCEPTIONS_IN_JOBS = 8
REDACT_CALLS = 12
MODULES_THAT_REDACT = 1
RAY_BELOW_THE_JOBS = 0
FILES_NAMING_THE_DETECTOR = 0
PACKAGES_WITHOUT_FACE = 0
CONFIGS_LOADING_HEAVY = 0

# The rooms of pipeline/, from below to above: a room imports itself and what stands on lower lines, nothing else.
FLOORS = (
    ("errors", "provenance", "messages"),
    ("tables", "masks", "images"),
    ("storage",),
    ("config",),
    ("model",),
    ("coco",),
    ("annotations",),
    ("synthetic", "cluster", "drawing", "lake"),
    ("metrics", "page"),
    ("annotate", "evaluate", "train", "export", "predict", "compare"),
)
# What each part of the project may import beside itself; the longest name that fits a module counts.
MAY_IMPORT = {
    "pipeline": (),
    "jobs": ("pipeline",),
    "maskfleet": ("pipeline", "jobs"),
    "testing": ("pipeline", "jobs"),
    "benchmarks": ("pipeline", "jobs", "testing"),
    # It compares a GPU with what the tests compare a CPU with.
    "benchmarks.gpu": ("pipeline", "testing", "tests"),
    "tests": ("pipeline", "jobs", "maskfleet", "testing"),
    "tests.benchmarks": ("pipeline", "jobs", "maskfleet", "testing", "benchmarks"),
}
PARTS = tuple(part for part in MAY_IMPORT if "." not in part)

RAY_ROOMS = ("annotate", "evaluate", "train", "cluster")
# What takes seconds to import, which reading a configuration must not.
HEAVY = {"ray", "torch", "torchvision", "timm", "safetensors.torch"}

ROOT = Path(__file__).resolve().parents[2]
PLACES_SHOWN = 10


@dataclass(frozen=True)
class Figure:
    """A number with its goal.

    Attributes:
        name: as the table shows it.
        goal: the largest value that is right.
        places: what was counted, one line each.
    """

    name: str
    goal: int
    places: list[str]

    @property
    def value(self) -> int:
        return len(self.places)

    @property
    def ok(self) -> bool:
        return self.value <= self.goal


def measure(modules: Modules) -> list[Figure]:
    """All figures of a project, in the order of the table."""
    pipeline, jobs = _below(modules, "pipeline"), _below(modules, "jobs")
    redacting = redact_calls(pipeline)
    return [
        Figure("loose modules in pipeline/", LOOSE_MODULES, loose_modules(pipeline)),
        Figure("files in the largest folder of pipeline/", FILES_IN_A_FOLDER, largest_folder(pipeline)),
        Figure("import circles", CIRCLES, [" <-> ".join(circle) for circle in circles(modules)]),
        Figure("rooms of pipeline/ without a floor", ROOMS_WITHOUT_FLOOR, rooms_without_floor(pipeline)),
        Figure("imports upward or sideways in pipeline/", UPWARD_IMPORTS, upward_imports(pipeline)),
        Figure("imports between parts that may not be", FORBIDDEN_IMPORTS, forbidden_imports(modules)),
        Figure("modules with one importer", MODULES_WITH_ONE_IMPORTER, with_one_importer({**pipeline, **jobs})),
        Figure("exception names caught in jobs/", EXCEPTIONS_IN_JOBS, exceptions_caught(jobs)),
        Figure("calls of redact in pipeline/", REDACT_CALLS, redacting),
        Figure("modules that call redact", MODULES_THAT_REDACT, sorted({call.split(":")[0] for call in redacting})),
        Figure("Ray in rooms that do without", RAY_BELOW_THE_JOBS, ray_below_the_jobs(pipeline)),
        Figure("files outside model/ naming the detector", FILES_NAMING_THE_DETECTOR, naming_the_detector(pipeline)),
        Figure("packages without a face, or with imports", PACKAGES_WITHOUT_FACE, without_face(pipeline)),
        Figure("configs that load Ray or torch", CONFIGS_LOADING_HEAVY, configs_loading_heavy(pipeline)),
    ]


def loose_modules(pipeline: Modules) -> list[str]:
    """Modules that stand directly in ``pipeline/``."""
    return [str(path) for path in _files(pipeline) if len(path.parts) == 2]


def largest_folder(pipeline: Modules) -> list[str]:
    """The modules of the folder that holds most."""
    folders = Counter(path.parent for path in _files(pipeline))
    largest = max(folders, key=lambda folder: folders[folder], default=None)
    return [str(path) for path in _files(pipeline) if path.parent == largest]


def rooms_without_floor(pipeline: Modules) -> list[str]:
    """Folders and modules directly in ``pipeline/`` that `FLOORS` does not know."""
    known = {room for floor in FLOORS for room in floor}
    rooms = sorted({room for name in pipeline if (room := _room(name))} - known)
    return [f"pipeline/{room}: add it to FLOORS in benchmarks/checks/house.py" for room in rooms]


def upward_imports(pipeline: Modules) -> list[str]:
    """Imports from one room into another that is on no lower floor; rooms without a floor are not judged."""
    floors = {room: height for height, floor in enumerate(FLOORS) for room in floor}
    return [
        f"{name} imports {target}"
        for name, target in _imports(pipeline)
        if (here := _room(name)) in floors and (there := _room(target)) in floors
        if here != there and floors[there] >= floors[here]
    ]


def forbidden_imports(modules: Modules) -> list[str]:
    """Imports from one part of the project into another that `MAY_IMPORT` does not grant."""
    return [
        f"{name} imports {target}"
        for name, target in _imports(modules)
        if (there := target.partition(".")[0]) in PARTS
        if there not in (name.partition(".")[0], *_granted(name))
    ]


def _granted(name: str) -> tuple[str, ...]:
    return MAY_IMPORT[max((part for part in MAY_IMPORT if is_below(name, part)), key=len)]


def with_one_importer(modules: Modules) -> list[str]:
    """Modules of ``pipeline/`` that exactly one of `modules` imports."""
    found = importers(modules)
    files = {name for name in found if is_below(name, "pipeline") and not modules[name].is_package}
    return [f"{name}, by {found[name][0]}" for name in sorted(files) if len(found[name]) == 1]


def ray_below_the_jobs(pipeline: Modules) -> list[str]:
    """Modules that import Ray outside `RAY_ROOMS`."""
    return [name for name in importing_ray(pipeline) if _room(name) not in RAY_ROOMS]


def importing_ray(modules: Modules) -> list[str]:
    """Modules that import Ray, inside functions too."""
    return [name for name, module in modules.items() if any(is_below(target, "ray") for target in module.imports)]


def configs_loading_heavy(pipeline: Modules) -> list[str]:
    """Configurations whose import executes that of a `HEAVY` library, with the way to it.

    What other libraries import themselves is not followed.
    """
    graph = loading_graph(pipeline)
    found = []
    for name in pipeline:
        if is_below(name, "pipeline.config") or (name.count(".") == 2 and name.endswith(".config")):
            ways = shortest_paths(graph, name)
            found += [" -> ".join(ways[library]) for library in sorted(HEAVY & ways.keys())[:1]]
    return found


def _below(modules: Modules, package: str) -> Modules:
    return {name: module for name, module in modules.items() if is_below(name, package)}


def _imports(modules: Modules) -> Iterator[tuple[str, str]]:
    return ((name, target) for name, module in modules.items() for target in sorted(module.imports))


def _room(name: str) -> str:
    """``storage`` of ``pipeline.storage.uris``; empty for what is in no room of ``pipeline/``."""
    parts = name.split(".")
    return parts[1] if parts[0] == "pipeline" and len(parts) > 1 else ""


def _files(modules: Modules) -> list[Path]:
    return [module.path for module in modules.values() if not module.is_package]


def table(figures: Iterable[Figure]) -> list[str]:
    """The lines of the table, and below each missed goal what counts."""
    lines = [f"{'figure':<42} {'value':>5} {'goal':>6}  ok?"]
    for figure in figures:
        lines.append(f"{figure.name:<42} {figure.value:>5} {f'<= {figure.goal}':>6}  {'ok' if figure.ok else 'NOT'}")
        if not figure.ok:
            lines += [f"    {place}" for place in figure.places[:PLACES_SHOWN]]
        if not figure.ok and figure.value > PLACES_SHOWN:
            lines.append(f"    and {figure.value - PLACES_SHOWN} more")
    return lines


def main(root: Path = ROOT) -> int:
    """Print the table of the project in `root`, and give the exit code.

    Raises:
        SyntaxError: a file there is no Python.
    """
    modules = read_modules(root, PARTS)
    figures = measure(modules)
    print("\n".join(table(figures)))
    ray = importing_ray(_below(modules, "pipeline"))
    print(f"\nmodules of pipeline/ that import Ray ({len(ray)}): {', '.join(ray)}")
    return 0 if all(figure.ok for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
