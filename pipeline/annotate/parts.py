"""What the workers of a run share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray

from pipeline.annotate.config import AnnotateConfig
from pipeline.annotate.manifest.open import Manifest
from pipeline.annotate.pool import Pool
from pipeline.annotate.stages.encode import Encode
from pipeline.annotations.ledger import Identity, OutputStore
from pipeline.model.variants import TestSettings


@dataclass(frozen=True)
class RunParts:
    """All that the graph's workers need. Everything in it pickles, and nothing in it is a secret."""

    config: AnnotateConfig
    manifest: Manifest
    settings: TestSettings
    encode: Encode
    store: OutputStore
    identity: Identity
    fence: Callable[[], None]
    checkpoint: ray.ObjectRef
    monitor: Any
    pool: Pool
