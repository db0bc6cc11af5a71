"""`ObjectFolder` on any fsspec file system.

One put where the service's puts are atomic, otherwise a temporary file and a move. fsspec has no conditional writes:
``create`` and ``replace`` look first and write then.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime, timezone
from typing import Any

import pyarrow as pa

from pipeline.storage.objects.base import Changed, Entry, Listing, ObjectFolder, check_seen, check_size, digest
from pipeline.storage.whole_file import temporary_name

_TIMES = ("mtime", "LastModified", "last_modified")


class FsspecObjects(ObjectFolder):
    """The files below a folder of the file system.

    Args:
        filesystem: fsspec's object for the service, opened.
        root: path of the folder in it.
        atomic_puts: whether what is put shows nothing before it is whole.
    """

    def __init__(self, filesystem: Any, root: str, atomic_puts: bool) -> None:
        self._fs = filesystem
        self._root = root
        self._atomic_puts = atomic_puts

    def list(self, folder: str) -> Listing:
        """See `ObjectFolder`."""
        self._fs.invalidate_cache()
        try:
            found = self._fs.ls(self._path(folder), detail=True)
        except FileNotFoundError:
            return Listing([], [])
        files, folders = [], []
        for info in found:
            name = info["name"].rstrip("/").rpartition("/")[2]
            if info["type"] == "directory":
                folders.append(name)
            else:
                files.append(Entry(name, info["size"], _version(info)))
        return Listing(sorted(files), sorted(folders))

    def read(self, name: str, max_bytes: int | None = None) -> tuple[bytes, str]:
        """See `ObjectFolder`."""
        if max_bytes is not None:
            check_size(name, self._fs.info(self._path(name))["size"], max_bytes)
        content = self._fs.cat_file(self._path(name))
        return content, digest(content)

    def read_range(self, name: str, start: int, stop: int) -> bytes:
        """See `ObjectFolder`."""
        return self._fs.cat_file(self._path(name), start=start, end=stop)

    def modified_at(self, name: str) -> datetime | None:
        """See `ObjectFolder`."""
        path = self._path(name)
        try:
            found = self._fs.modified(path)
        except NotImplementedError:
            info = self._fs.info(path)
            found = next((info[key] for key in _TIMES if isinstance(info.get(key), datetime)), None)
        return found.replace(tzinfo=timezone.utc) if found is not None and found.tzinfo is None else found

    def put(self, name: str, content: pa.Buffer | bytes) -> None:
        """See `ObjectFolder`."""
        path = self._path(name)
        self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        if self._atomic_puts:
            self._fs.pipe_file(path, bytes(content))
            return
        temporary = self._path(temporary_name(name))
        self._fs.pipe_file(temporary, bytes(content))
        try:
            self._fs.mv(temporary, path)
        except OSError:
            if not self._fs.exists(path):
                raise
            self._fs.rm_file(path)  # some servers rename onto free names only
            self._fs.mv(temporary, path)

    def create(self, name: str, content: bytes) -> str:
        """See `ObjectFolder`."""
        if self._fs.exists(self._path(name)):
            raise FileExistsError(name)
        self.put(name, content)
        return digest(content)

    def replace(self, name: str, content: bytes, version: str) -> str:
        """See `ObjectFolder`."""
        try:
            if self.read(name)[1] != version:
                raise Changed(name)
        except FileNotFoundError:
            raise Changed(name) from None
        self.put(name, content)
        return digest(content)

    def delete(self, name: str, seen: Entry | None = None) -> None:
        """See `ObjectFolder`."""
        folder, _, base = name.rpartition("/")
        if seen is not None:  # in another listing: some services tell other things where they are asked for one file
            for entry in self.list(folder).files:
                if entry.name == base:
                    check_seen(name, entry, seen)
        with suppress(FileNotFoundError):
            self._fs.rm_file(self._path(name))

    def delete_empty_folder(self, folder: str) -> None:
        """See `ObjectFolder`."""
        listing = self.list(folder)
        if not listing.files and not listing.folders:
            with suppress(OSError, NotImplementedError):
                self._fs.rmdir(self._path(folder))

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"


def _version(info: dict[str, Any]) -> str:
    for key in ("ETag", "etag", "mtime", "LastModified", "updated", "last_modified", "created"):
        if info.get(key):
            return str(info[key])
    return ""
