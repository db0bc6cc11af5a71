"""Where a model's weights lie: a path as it is, or the name of a published model, fetched on first use."""

from __future__ import annotations

import difflib
import logging
from pathlib import Path

from pipeline.errors import UserError
from pipeline.model.architecture import KnownModel
from pipeline.model.architectures import KNOWN_MODELS
from pipeline.storage.uris import UriText

logger = logging.getLogger(__name__)


class UnknownModelError(UserError):
    """Neither a file nor the name of a known model."""


def resolve_checkpoint(name_or_path: UriText, cache_dir: str | Path | None = None) -> Path:
    """The checkpoint file that the user means.

    Args:
        name_or_path: a file, or a name out of `pipeline.model.architectures.KNOWN_MODELS`. Where both exist, the file.
        cache_dir: where downloads are kept, `pipeline.storage.download.cache_directory` by default.

    Raises:
        UnknownModelError: neither of the two.
        DownloadError: the model is not in the cache and could not be fetched.
    """
    model = find_model(name_or_path)
    if isinstance(model, Path):
        return model
    from pipeline.storage.download import cache_directory, fetch_to_cache

    directory = Path(cache_dir) if cache_dir else cache_directory()
    logger.info("model %s: %s", model.name, directory / model.file_name)
    return fetch_to_cache(model.url, model.file_name, model.sha256, directory)


def find_model(name_or_path: UriText) -> Path | KnownModel:
    """What `resolve_checkpoint` would take, without loading or fetching anything.

    Raises:
        UnknownModelError: there is neither a file nor a model of that name.
    """
    path = Path(name_or_path.secret_text)
    if path.is_file():
        return path
    model = KNOWN_MODELS.get(name_or_path.secret_text)
    if model is None:
        raise UnknownModelError(_unknown(str(name_or_path), path))
    return model


def _unknown(given: str, path: Path) -> str:
    close = difflib.get_close_matches(given, KNOWN_MODELS, n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    kind = "is a directory" if path.is_dir() else "is neither a file nor a known model"
    return f"{given!r} {kind}.{hint} Known models: {', '.join(KNOWN_MODELS)}"
