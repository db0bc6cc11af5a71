"""Files read from their beginning to their end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa

from pipeline.storage.errors import cannot_read
from pipeline.storage.filesystems import open_filesystem
from pipeline.storage.uris import Uri


@contextmanager
def open_stream(uri: Uri) -> Iterator[pa.NativeFile]:
    """A source's bytes, decompressed if its suffix says so (``.gz``, ``.zst``, ``.bz2``).

    Raises:
        StorageError: it cannot be opened.
    """
    try:
        filesystem, path = open_filesystem(uri)
        stream = filesystem.open_input_stream(path, compression="detect")
    except OSError as error:
        raise cannot_read(uri, error) from None
    with stream:
        yield stream
