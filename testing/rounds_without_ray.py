"""The annotate job without Ray and without a model: its rounds write rows for all that is pending, at once."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa

from pipeline.annotate.manifest.open import Manifest
from pipeline.annotate.pending.antijoin import Pending
from pipeline.annotations.data_file import Identity
from pipeline.annotations.ledger import OutputStore
from pipeline.annotations.run_json import ThisRun

_MODULE = "pipeline.annotate.rounds"


@dataclass
class Rounds:
    """Stands for `pipeline.annotate.rounds.Rounds`."""

    manifest: Manifest
    identity: Identity
    rows: Callable[[pa.Array], pa.Table]
    meanwhile: Callable[[OutputStore], None]
    why_ended: str
    started: float
    num: int = 0
    todo: int = 0
    cluster: dict[str, Any] = field(default_factory=dict)

    def run(self, pending: Pending, work: ExitStack, store: OutputStore) -> str:
        """A file for each unit with pending rows; and whatever else happens in that time."""
        for unit, indices in pending.iter_units():
            ids = self.manifest.read_ids(unit).take(pa.array(np.asarray(indices)))
            store.write_rows(self.rows(ids), self.identity)
        self.meanwhile(store)
        return self.why_ended

    def figures(self) -> ThisRun:
        """None that mean something, but for the time."""
        return ThisRun(images=self.todo, rounds=self.num, seconds=time.monotonic() - self.started)

    def changes(self) -> dict[str, Any]:
        """None of the cluster."""
        return {}


@contextmanager
def rounds_without_ray(
    rows: Callable[[pa.Array], pa.Table],
    meanwhile: Callable[[OutputStore], None] = lambda store: None,
    why_ended: str = "",
) -> Iterator[None]:
    """In this block `pipeline.annotate.run.annotate` has no other rounds.

    Args:
        rows: of images with these ids, of the output's schema.
        meanwhile: called at the end of each round.
        why_ended: what each round says of why the run should end, if it should.
    """

    @contextmanager
    def connected(
        config: Any, model: Any, manifest: Manifest, schema: Any, identity: Identity, lock: Any, started: float
    ) -> Iterator[Rounds]:
        yield Rounds(manifest, identity, rows, meanwhile, why_ended, started)

    # Not the module's own function: to import it takes Ray. Nor `patch.dict`, which forgets what is imported meanwhile:
    # there are libraries that cannot be loaded twice.
    before = sys.modules.get(_MODULE)
    sys.modules[_MODULE] = cast("ModuleType", SimpleNamespace(connected=connected))
    try:
        yield
    finally:
        del sys.modules[_MODULE]
        if before is not None:
            sys.modules[_MODULE] = before
