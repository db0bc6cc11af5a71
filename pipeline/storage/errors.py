"""What happens when a file cannot be read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa

from pipeline.errors import RunError, UserError
from pipeline.storage.uris import Uri

_DAMAGE = (pa.ArrowException, ValueError, LookupError, ArithmeticError, EOFError, MemoryError, RecursionError)


class StorageError(UserError):
    """A file or folder that cannot be read. The message holds no secrets."""


def cannot_read(uri: Uri, error: Exception) -> StorageError:
    """The reason why a file could not be read, without the secrets that the library's own words may quote."""
    reason = " ".join(uri.hide_in(str(error)).split())  # some libraries write pages
    return StorageError(f"{uri} cannot be read: {type(error).__name__}: {reason[:500]}")


@contextmanager
def explained(uri: Uri) -> Iterator[None]:
    """What libraries find wrong with a file's content, in whatever way they say it, as a StorageError.

    An ``OSError`` goes through: where it comes from the network it is worth another try. (What Arrow's Parquet reader
    finds wrong is an ``OSError`` too; whoever opens a file has both explained.)
    """
    try:
        yield
    except (UserError, RunError, OSError):
        raise
    except _DAMAGE as error:
        raise cannot_read(uri, error) from None
