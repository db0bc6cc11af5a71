"""What a run has settled before its graph is built."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray

from pipeline.annotate.config import AnnotateConfig
from pipeline.annotate.manifest.open import Manifest
from pipeline.annotate.pool import Pool
from pipeline.annotations.ledger import Identity, OutputStore
from pipeline.model.categories import Category
from pipeline.model.variants import TestSettings


@dataclass(frozen=True)
class RunParts:
    """What the graph is built from, on the driver.

    Attributes:
        config: of the run.
        manifest: what is read.
        settings: the model's, completed by the config.
        categories: what the model's labels stand for.
        checkpoint: the model, in the object store.
        schema: of the output.
        store, identity: the output, and what goes into its files' footers.
        fence: raises where this run may not write any more.
        monitor: what `pipeline.annotate.monitor.start_monitor` gave.
        pool: the replicas of the model.
    """

    config: AnnotateConfig
    manifest: Manifest
    settings: TestSettings
    categories: tuple[Category, ...]
    checkpoint: ray.ObjectRef
    schema: pa.Schema
    store: OutputStore
    identity: Identity
    fence: Callable[[], None]
    monitor: Any
    pool: Pool
