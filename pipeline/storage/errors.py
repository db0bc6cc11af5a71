"""What happens when a file cannot be read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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


def not_there(uri: Uri, filesystem: Any, path: str) -> StorageError:
    """Why there is nothing at a place. Of a web page Arrow says that whatever happened, so its server is asked again.

    Args:
        uri: where nothing is.
        filesystem: Arrow's, of `open_filesystem`.
        path: in that.
    """
    if uri.is_http:
        try:
            filesystem.handler.fs.info(path)
        except FileNotFoundError as error:  # fsspec's word for all of it, too
            cause = error.__cause__
            status = getattr(cause, "status", None)
            if status not in (None, 404, 410):
                return StorageError(f"{uri} cannot be read: {uri.host} answers {status}")
            if cause is not None and status is None:
                reason = " ".join(uri.hide_in(str(cause)).split()) or type(cause).__name__
                return StorageError(f"{uri} cannot be read: no connection to {uri.host}: {reason[:500]}")
    return StorageError(f"{uri} does not exist")


@contextmanager
def explained(uri: Uri) -> Iterator[None]:
    """What libraries find wrong with a file's content, in whatever way they say it, as a StorageError.

    An ``OSError`` of the system or the network goes through: it is worth another try.
    """
    try:
        yield
    except (UserError, RunError):
        raise
    except OSError as error:
        if type(error) is not OSError or error.errno is not None or "AWS Error" in str(error):
            raise
        raise cannot_read(uri, error) from None  # Arrow's, of what it read: a checksum, a codec, Thrift
    except _DAMAGE as error:
        raise cannot_read(uri, error) from None
