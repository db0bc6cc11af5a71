"""Image files named on a command line."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path

from pipeline.images.decode import IMAGE_SUFFIXES
from pipeline.storage.uris import UriText


def find_images(named: Sequence[str], skip: Path | None = None) -> list[Path]:
    """The files meant by files, folders (searched to any depth) and glob patterns, in order, each once.

    What matches nothing stays in the list as it is: whoever reads it reports it.

    Args:
        named: as given by the user.
        skip: folders are not searched below this one: where the results go.

    Raises:
        ValueError: there is not one file.
    """
    found: dict[Path, Path] = {}
    for name in named:
        path = Path(name)
        matches = [path] if path.exists() else [Path(match) for match in sorted(glob.glob(name, recursive=True))]
        for match in matches or [path]:
            for file in (_below(match, skip) if match.is_dir() else [match]) or [match]:
                found.setdefault(file.resolve(), file)
    if not any(file.is_file() for file in found.values()):
        raise ValueError(f"no image files: {', '.join(str(UriText(name)) for name in named)}")
    return list(found.values())


def _below(folder: Path, skip: Path | None) -> list[Path]:
    outside = skip.resolve() if skip and skip.resolve() != folder.resolve() else None
    return [
        file
        for file in sorted(folder.rglob("*"))
        if file.suffix.lower() in IMAGE_SUFFIXES
        and file.is_file()
        and not (outside and outside in file.resolve().parents)
    ]
