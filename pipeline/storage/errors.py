"""What happens when a file cannot be read."""

from __future__ import annotations

from pipeline.errors import UserError
from pipeline.storage.uris import redact


class StorageError(UserError):
    """A file or folder that cannot be read. The message is redacted."""


def cannot_read(uri: str, error: Exception) -> StorageError:
    """The reason why a file could not be read, redacted."""
    reason = str(error).replace(uri, redact(uri))
    return StorageError(f"{redact(uri)} cannot be read: {type(error).__name__}: {reason}")
