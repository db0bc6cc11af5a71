"""What a run settles before it starts: the model, its settings, the identity of what it writes, and what it is
compared with.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from pipeline.annotate.config import AnnotateConfig, DriftConfig
from pipeline.annotations.data_file import Identity, OutputError
from pipeline.annotations.reader import open_source
from pipeline.config.base import ConfigError
from pipeline.model.files.header import CheckpointError, Header, read_header
from pipeline.model.files.resolve import resolve_checkpoint
from pipeline.model.settings import TestSettings
from pipeline.provenance import code_version

if TYPE_CHECKING:
    from pipeline.model.files.checkpoints import Checkpoint


@dataclass(frozen=True)
class ChosenModel:
    """The checkpoint that a config names, with its weights read only where nothing else tells what it is.

    Attributes:
        path: of the file.
        header: what it is.
        settings: the checkpoint's, with those of the config.
    """

    path: Path
    header: Header
    settings: TestSettings
    _loaded: Checkpoint | None = None

    def load(self) -> Checkpoint:
        """The weights.

        Raises:
            CheckpointError: they cannot be used, or are others than they were said to be.
        """
        if self._loaded is not None:
            return self._loaded
        from pipeline.model.files.checkpoints import load_checkpoint

        checkpoint = load_checkpoint(self.path)
        if _header_of(checkpoint) != self.header:
            raise CheckpointError(f"{self.path} was replaced by another file while the run began: run it again")
        return checkpoint


def choose_model(config: AnnotateConfig) -> ChosenModel:
    """Find the checkpoint, and what it is; a file of ours says so itself, of others torch reads the weights.

    Raises:
        UnknownModelError, DownloadError, CheckpointError: there is no such model, or the file cannot be used.
        ConfigError: the config does not fit the checkpoint.
    """
    path = resolve_checkpoint(config.model.checkpoint)
    header, loaded = read_header(path), None
    if header is None:
        from pipeline.model.files.checkpoints import load_checkpoint

        loaded = load_checkpoint(path)
        header = _header_of(loaded)
    return ChosenModel(path, header, model_settings(config, header), loaded)


def model_settings(config: AnnotateConfig, model: Header | Checkpoint) -> TestSettings:
    """The checkpoint's settings with those of the config.

    Raises:
        ConfigError: the config does not fit the checkpoint.
    """
    try:
        config.model.label_thresholds([c.name for c in model.categories])
        return config.model.settings(model.settings)
    except ValueError as error:
        raise ConfigError(f"model: {error}") from None


def _header_of(checkpoint: Checkpoint) -> Header:
    return Header(
        checkpoint.variant, checkpoint.categories, checkpoint.settings, checkpoint.source, checkpoint.weights_sha256
    )


def check_against(drift: DriftConfig | None, id_type: pa.DataType) -> None:
    """Raise unless what a run made can be compared with what its config names: a night is compared once, at its end.

    Args:
        id_type: of the images' ids.

    Raises:
        OutputError: there is no such output, or its ids are of another type.
    """
    if drift is None or drift.against == "previous":
        return
    if open_source(drift.against).string_ids != pa.types.is_string(id_type):
        raise OutputError(
            f"the image ids of {drift.against} (drift.against) and of the manifest are of two types: nothing can be "
            "compared"
        )


def make_identity(config: AnnotateConfig, model: Header | Checkpoint, run_id: str) -> Identity:
    """What every file of the output must agree in, and where it came from."""
    # A file of our own training was converted from none: then it is the one that the user named.
    file = model.source.get("file") or Path(str(config.model.checkpoint)).name
    return Identity(
        model_name=f"{model.variant.name} ({file})",
        weights_sha256=model.weights_sha256,
        config_digest=config.content_digest(model.settings),
        content_config=json.dumps(config.content(model.settings), sort_keys=True),
        code_version=code_version(),
        run_id=run_id,
    )
