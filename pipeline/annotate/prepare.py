"""What a run settles before it starts: the model's settings, and the identity of what it writes."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline.annotate.config import AnnotateConfig
from pipeline.annotations.data_file import Identity
from pipeline.config.base import ConfigError
from pipeline.model.files.checkpoints import Checkpoint
from pipeline.model.settings import TestSettings
from pipeline.provenance import code_version


def model_settings(config: AnnotateConfig, checkpoint: Checkpoint) -> TestSettings:
    """The checkpoint's settings with those of the config.

    Raises:
        ConfigError: the config does not fit the checkpoint.
    """
    try:
        config.model.label_thresholds([c.name for c in checkpoint.categories])
        return config.model.settings(checkpoint.settings)
    except ValueError as error:
        raise ConfigError(f"model: {error}") from None


def make_identity(config: AnnotateConfig, checkpoint: Checkpoint, run_id: str) -> Identity:
    """What every file of the output must agree in, and where it came from."""
    # A file of our own training was converted from none: then it is the one that the user named.
    file = checkpoint.source.get("file") or Path(str(config.model.checkpoint)).name
    return Identity(
        model_name=f"{checkpoint.variant.name} ({file})",
        weights_sha256=checkpoint.weights_sha256,
        config_digest=config.content_digest(checkpoint.settings),
        content_config=json.dumps(config.content(checkpoint.settings), sort_keys=True),
        code_version=code_version(),
        run_id=run_id,
    )
