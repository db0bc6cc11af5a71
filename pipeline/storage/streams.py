"""Files read from their beginning to their end."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from pipeline.storage.errors import cannot_read, explained, not_there
from pipeline.storage.filesystems import open_filesystem
from pipeline.storage.uris import Uri

COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
_IN_ONE_WORD = {".tgz": "gzip"}  # of two suffixes


@contextmanager
def open_stream(uri: Uri) -> Iterator[io.RawIOBase]:
    """A source's bytes, decompressed if its suffix says so (`COMPRESSIONS`).

    Raises:
        StorageError: it cannot be opened; or, at any read, to its end: the connection breaks, what is compressed is
            cut off or damaged.
    """
    kinds = {**COMPRESSIONS, **_IN_ONE_WORD}
    compression = next((kind for suffix, kind in kinds.items() if uri.path.lower().endswith(suffix)), None)
    try:
        with explained(uri):
            filesystem, path = open_filesystem(uri)
            stream = filesystem.open_input_stream(path, compression=compression)
    except OSError as error:
        if uri.is_http and isinstance(error, FileNotFoundError):
            raise not_there(uri, filesystem, path) from None
        raise cannot_read(uri, error) from None
    with stream, _Explained(stream, uri) as reader:
        yield reader


class _Explained(io.RawIOBase):
    """A stream whose errors name the file, whatever they are and whoever reads."""

    def __init__(self, stream: pa.NativeFile, uri: Uri) -> None:
        self._stream = stream
        self._uri = uri

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            with explained(self._uri):
                return int(self._stream.readinto(buffer))
        except OSError as error:
            raise cannot_read(self._uri, error) from None
