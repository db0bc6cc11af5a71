"""Makes the model slow, and writes down which images it began with and when; see ``hooks``."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Collection
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks.chaos import hooks

FOLDER_VARIABLE = "MASKFLEET_CHAOS_WITNESS"
_IMAGE_S = 0.25  # longer in the model


def _watch_segment(module: ModuleType) -> None:
    segment: Callable[..., Any] = module.Segment.__call__
    log = Path(os.environ[FOLDER_VARIABLE], f"{os.getpid()}.jsonl").open("a", buffering=1)  # noqa: SIM115

    def watched(self: Any, rows: Any) -> Any:
        log.write(json.dumps([time.time(), rows["image_id"].to_pylist()]) + "\n")
        time.sleep(_IMAGE_S * len(rows))
        return segment(self, rows)

    module.Segment.__call__ = watched


def install() -> None:
    """Watch the stage when its module is imported."""
    hooks.install({"pipeline.annotate.stages.segment": _watch_segment})


def has_begun(folder: Path) -> bool:
    """Whether the model has begun with an image."""
    return any(log.stat().st_size for log in folder.iterdir())


def oldest_lost(folder: Path, written: Collection[str]) -> float | None:
    """When the model began with the first image that was not written, by ``time.time``. Forgets what it has seen."""
    began = []
    for log in folder.iterdir():
        for line in log.read_text().splitlines():
            when, ids = json.loads(line)
            began += [when] if set(ids) - set(written) else []
        log.unlink()
    return min(began, default=None)
