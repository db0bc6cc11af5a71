"""What happens when a file cannot be read."""

from __future__ import annotations

from pipeline.errors import UserError
from pipeline.storage.uris import Uri


class StorageError(UserError):
    """A file or folder that cannot be read. The message holds no secrets."""


def cannot_read(uri: Uri, error: Exception) -> StorageError:
    """The reason why a file could not be read, without the secrets that the library's own words may quote."""
    return StorageError(f"{uri} cannot be read: {type(error).__name__}: {uri.hide_in(str(error))}")
