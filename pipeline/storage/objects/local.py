"""`ObjectFolder` on a local or mounted file system.

Temporary file, fsync, link or rename; the comparison of :meth:`LocalObjects.replace` happens under ``flock``. Where a
network file system has no ``flock``, or keeps it to one machine, two machines that replace one file within the same
millisecond may both succeed.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path

import pyarrow as pa

from pipeline.storage.objects.base import Changed, Entry, Listing, ObjectFolder, check_seen, check_size, digest
from pipeline.storage.whole_file import sync, temporary_file, write_whole

# Each means that somebody else was faster; where it is for ever, a mount has two inode numbers for one file.
_MOST_TRIES = 1000


class LocalObjects(ObjectFolder):
    """The files below a folder of this machine.

    Args:
        root: path of the folder.
    """

    def __init__(self, root: str) -> None:
        self._root = root

    def list(self, folder: str) -> Listing:
        """See `ObjectFolder`."""
        files, folders = [], []
        with suppress(FileNotFoundError), os.scandir(self._path(folder)) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # gone since the folder was read
                    if entry.is_dir():
                        folders.append(entry.name)
                    else:
                        files.append(_entry(entry.name, entry.stat()))
        return Listing(sorted(files), sorted(folders))

    def read(self, name: str, max_bytes: int | None = None) -> tuple[bytes, str]:
        """See `ObjectFolder`."""
        with open(self._path(name), "rb") as file:
            check_size(self._path(name), os.fstat(file.fileno()).st_size, max_bytes)
            content = file.read()
        return content, digest(content)

    def read_range(self, name: str, start: int, stop: int) -> bytes:
        """See `ObjectFolder`."""
        with open(self._path(name), "rb") as file:
            file.seek(start)
            return file.read(stop - start)

    def modified_at(self, name: str) -> datetime:
        """See `ObjectFolder`."""
        return datetime.fromtimestamp(os.stat(self._path(name)).st_mtime, timezone.utc)

    def put(self, name: str, content: pa.Buffer | bytes) -> None:
        """See `ObjectFolder`."""
        with write_whole(self._path(name)) as temporary:
            temporary.write_bytes(content)

    def create(self, name: str, content: bytes) -> str:
        """See `ObjectFolder`."""
        try:
            return self._create(name, content)
        except FileNotFoundError:  # a run that had written nothing has just removed the folder
            return self._create(name, content)

    def _create(self, name: str, content: bytes) -> str:
        path = self._path(name)
        with self._written(name, content) as temporary:
            try:
                os.link(temporary, path)  # unlike a rename it fails if the name is taken
            except FileExistsError:
                raise
            except OSError:  # no hard links here; for a moment the file is there without its content
                with open(path, "xb") as file:
                    file.write(content)
        return digest(content)

    def replace(self, name: str, content: bytes, version: str) -> str:
        """See `ObjectFolder`."""
        if not os.path.lexists(self._path(name)):
            raise Changed(name)  # before its folder, which may be gone too, is made anew
        try:
            with self._written(name, content) as temporary, self._alone(name):
                if self.read(name)[1] != version:
                    raise Changed(name)
                os.replace(temporary, self._path(name))
        except FileNotFoundError:
            raise Changed(name) from None
        return digest(content)

    def discard(self, name: str, version: str) -> bool:
        """See `ObjectFolder`."""
        path = self._path(name)
        try:
            with self._alone(name):
                if self.read(name)[1] != version:
                    raise Changed(name)
                os.unlink(path)
        except FileNotFoundError:
            raise Changed(name) from None
        with suppress(FileNotFoundError):  # the folder is gone too: a run that came meanwhile wrote nothing either
            sync(os.path.dirname(path))
        return True

    def delete(self, name: str, seen: Entry | None = None) -> None:
        """See `ObjectFolder`."""
        path = self._path(name)
        try:
            if seen is not None:
                check_seen(path, _entry(name, os.stat(path)), seen)
            os.unlink(path)
        except FileNotFoundError:
            return
        sync(os.path.dirname(path))

    def delete_empty_folder(self, folder: str) -> None:
        """See `ObjectFolder`."""
        with suppress(OSError):  # there is something in it, or it is a link
            os.rmdir(self._path(folder))

    def open(self, name: str, size_bytes: int) -> pa.NativeFile:
        """See `ObjectFolder`."""
        return pa.OSFile(self._path(name))

    def _path(self, name: str) -> str:
        return os.path.join(self._root, *name.split("/"))

    @contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        folder, base = os.path.split(self._path(name))
        path = os.path.join(folder, f".{base}.guard")
        for tries_left in reversed(range(_MOST_TRIES)):
            with open(path, "wb") as guard:
                with suppress(OSError):  # not supported, see the module
                    fcntl.flock(guard, fcntl.LOCK_EX)
                if tries_left and not _is_at(guard.fileno(), path):
                    continue  # its holder removed it while we waited: whoever comes now makes another one
                try:
                    yield
                finally:
                    with suppress(FileNotFoundError):
                        os.unlink(path)
                return

    @contextmanager
    def _written(self, name: str, content: bytes) -> Iterator[Path]:
        with temporary_file(self._path(name)) as temporary:
            temporary.write_bytes(content)
            sync(temporary)
            yield temporary
            sync(temporary.parent)


def _is_at(descriptor: int, path: str) -> bool:
    """Whether an open file still is the one at a path."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _entry(name: str, status: os.stat_result) -> Entry:
    # The inode as well: clocks of file systems tick slowly, and two files of one tick may have one size.
    return Entry(name, status.st_size, f"{status.st_mtime_ns} {status.st_ino}")
