"""Files of one folder, each written, read and removed as a whole: what an output and its lock need.

Plain file systems do not promise it: a file that appears whole or not at all, and one that is replaced only if
it is still what one saw. `pipeline.storage.objects.open` knows the implementations.
"""

from __future__ import annotations

import hashlib
import io
import os
from abc import ABC, abstractmethod
from datetime import datetime
from typing import NamedTuple

import pyarrow as pa

from pipeline.errors import RunError, UserError


class Changed(RunError):
    """The file is not the version that was to be replaced."""


class TooLarge(UserError):
    """A file that cannot be what it is taken for: it has more bytes than that can have."""


class Entry(NamedTuple):
    """A file in a listing. ``version`` changes with the content; ``""`` if the listing does not tell."""

    name: str
    size_bytes: int
    version: str


class Listing(NamedTuple):
    """What lies directly in a folder."""

    files: list[Entry]
    folders: list[str]


class ObjectFolder(ABC):
    """The files below one folder. Names are relative, with ``/``; folders come with their files.

    Failures are ``OSError`` (``FileNotFoundError`` for a file that is not there).
    """

    @abstractmethod
    def list(self, folder: str) -> Listing:
        """What lies directly in a folder, in the order of the names; nothing if there is no such folder."""

    @abstractmethod
    def read(self, name: str, max_bytes: int | None = None) -> tuple[bytes, str]:
        """The content, and its version for :meth:`replace`.

        Raises:
            TooLarge: the file has more than ``max_bytes``; they were not read.
        """

    @abstractmethod
    def read_range(self, name: str, start: int, stop: int) -> bytes:
        """The bytes from ``start`` to before ``stop``."""

    @abstractmethod
    def modified_at(self, name: str) -> datetime | None:
        """When a file was last written, by the storage's clock, with its time zone; ``None`` where that does not tell.

        Raises:
            FileNotFoundError: there is no such file.
        """

    @abstractmethod
    def put(self, name: str, content: pa.Buffer | bytes) -> None:
        """Write or overwrite; the file appears whole or not at all, and is there after a power cut."""

    @abstractmethod
    def create(self, name: str, content: bytes) -> str:
        """Write if there is no such file; the new version.

        Raises:
            FileExistsError: there is.
        """

    @abstractmethod
    def replace(self, name: str, content: bytes, version: str) -> str:
        """Overwrite if the file still has this version; the new version.

        Raises:
            Changed: it has another one, or is gone.
        """

    def discard(self, name: str, version: str) -> bool:
        """Remove if the file still has this version, where the storage can do that in one step; else it stays.

        Returns:
            whether the storage can.

        Raises:
            Changed: it has another one, or is gone.
        """
        return False

    @abstractmethod
    def delete(self, name: str, seen: Entry | None = None) -> None:
        """Remove; nothing happens if there is no such file.

        Args:
            name: of the file.
            seen: what a listing said about it: only that version is removed. The last look comes right before the
                removal, in another request where the storage has no removal on a condition.

        Raises:
            Changed: it is not what the listing said.
        """

    @abstractmethod
    def delete_empty_folder(self, folder: str) -> None:
        """Remove a folder if there is nothing in it, where folders are more than the names of their files."""

    def open(self, name: str, size_bytes: int) -> pa.NativeFile:
        """For reading parts of a file of known size."""
        return pa.PythonFile(_RangeFile(self, name, size_bytes), mode="r")


class ReadFailed(OSError):
    """The storage did not give the bytes of a file, which says nothing of what they are."""


def is_of_content(error: OSError) -> bool:
    """Whether an error of reading from `ObjectFolder.open` is about what the bytes are, not about getting them.

    Arrow complains of damage with ``OSError`` too. Errors of the operating system have a number, and those of any other
    storage are `ReadFailed`.
    """
    return type(error) is OSError and error.errno is None


def check_size(name: str, size_bytes: int, max_bytes: int | None) -> None:
    """Raise `TooLarge` if there are more bytes than there may be."""
    if max_bytes is not None and size_bytes > max_bytes:
        raise TooLarge(f"{name} has {size_bytes:,} bytes, more than the {max_bytes:,} that it can have")


def check_seen(name: str, found: Entry, seen: Entry) -> None:
    """Raise `Changed` unless a file still is what a listing said."""
    if (found.size_bytes, found.version) != (seen.size_bytes, seen.version):
        raise Changed(f"{name} is not removed: it is another file than a moment ago, so somebody else writes there")


def digest(content: bytes) -> str:
    """The version of a file where the storage has none of its own."""
    return hashlib.sha256(content).hexdigest()


class _RangeFile(io.RawIOBase):
    """A file whose reads are range requests, for pyarrow."""

    def __init__(self, objects: ObjectFolder, name: str, size_bytes: int) -> None:
        self._objects = objects
        self._name = name
        self._size_bytes = size_bytes
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size_bytes}[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, size: int = -1) -> bytes:
        start = self._position
        stop = self._size_bytes if size < 0 else min(start + size, self._size_bytes)
        self._position = max(start, stop)
        try:
            return self._objects.read_range(self._name, start, stop) if stop > start else b""
        except OSError as error:
            raise ReadFailed(str(error)) from None
