"""Implementations of `Objects`: local, S3, any fsspec file system.

- local: temporary file, fsync, link or rename; the comparison of :meth:`Objects.replace` happens under
  ``flock``. Where a network file system has no ``flock``, or keeps it to one machine, two machines that
  replace one file within the same millisecond may both succeed.
- ``s3://``: one PUT, conditional on the ETag where asked (``If-None-Match``, ``If-Match``).
- everything else: one put where the service's puts are atomic, otherwise a temporary file and a move.
  fsspec has no conditional writes: there ``create`` and ``replace`` look first and write then.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import obstore
import pyarrow as pa
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

from pipeline.data.objects import Changed, Entry, Listing, Objects, temporary_name
from pipeline.data.storage import open_filesystem, open_s3_store
from pipeline.data.uris import UriError, redact, split_uri

MAX_ATTEMPTS = 6
BACKOFF_BASE_S = 0.2
BACKOFF_CAP_S = 10.0
MULTIPART_ABOVE_BYTES = 100_000_000
MULTIPART_CHUNK_BYTES = 16 << 20

_STATUS = re.compile(r"status code: (\d{3})")
_ERRORS = {401: PermissionError, 403: PermissionError, 404: FileNotFoundError}
_HINTS = {404: "no such object, or no such bucket", 501: "the service may have no conditional writes"}
# Their puts show nothing before the last byte; a move would be a copy and a deletion.
_ATOMIC_PUTS = frozenset({"gs", "gcs", "abfs", "abfss", "az", "memory"})

Result = TypeVar("Result")


def open_objects(uri: str, timeout_s: float, max_attempts: int = MAX_ATTEMPTS) -> Objects:
    """The files below a URI. Nothing is created before the first write.

    Args:
        uri: a local path, or any URI that ``open_filesystem`` takes.
        timeout_s: for one request to S3.
        max_attempts: requests to S3 if the service stumbles, with growing waits between them.

    Raises:
        UriError: malformed, or a scheme that cannot be opened.
    """
    location = split_uri(uri)
    if location.scheme == "file":
        return LocalObjects(os.path.abspath(location.path))
    if location.scheme == "s3":
        return S3Objects(location.host, location.path.rstrip("/"), timeout_s, max_attempts)
    filesystem, path = open_filesystem(uri)
    return FsspecObjects(filesystem.handler.fs, path.rstrip("/"), location.scheme in _ATOMIC_PUTS)


class LocalObjects(Objects):
    """See the module."""

    def __init__(self, root: str) -> None:
        self._root = root

    def list(self, folder: str) -> Listing:
        """See `Objects`."""
        files, folders = [], []
        with suppress(FileNotFoundError), os.scandir(self._path(folder)) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # gone since the folder was read
                    if entry.is_dir():
                        folders.append(entry.name)
                    else:
                        status = entry.stat()
                        files.append(Entry(entry.name, status.st_size, str(status.st_mtime_ns)))
        return Listing(sorted(files), sorted(folders))

    def read(self, name: str) -> tuple[bytes, str]:
        """See `Objects`."""
        with open(self._path(name), "rb") as file:
            content = file.read()
        return content, _digest(content)

    def read_range(self, name: str, start: int, stop: int) -> bytes:
        """See `Objects`."""
        with open(self._path(name), "rb") as file:
            file.seek(start)
            return file.read(stop - start)

    def put(self, name: str, content: pa.Buffer | bytes) -> None:
        """See `Objects`."""
        with self._written(name, content) as temporary:
            os.replace(temporary, self._path(name))

    def create(self, name: str, content: bytes) -> str:
        """See `Objects`."""
        path = self._path(name)
        with self._written(name, content) as temporary:
            try:
                os.link(temporary, path)  # unlike a rename it fails if the name is taken
            except FileExistsError:
                raise
            except OSError:  # no hard links here; for a moment the file is there without its content
                with open(path, "xb") as file:
                    file.write(content)
        return _digest(content)

    def replace(self, name: str, content: bytes, version: str) -> str:
        """See `Objects`."""
        try:
            with self._written(name, content) as temporary, self._alone(name):
                if self.read(name)[1] != version:
                    raise Changed(name)
                os.replace(temporary, self._path(name))
        except FileNotFoundError:
            raise Changed(name) from None
        return _digest(content)

    def delete(self, name: str) -> None:
        """See `Objects`."""
        try:
            os.unlink(self._path(name))
        except FileNotFoundError:
            return
        _sync_folder(os.path.dirname(self._path(name)))

    def open(self, name: str, size_bytes: int) -> pa.NativeFile:
        """See `Objects`."""
        return pa.OSFile(self._path(name))

    def _path(self, name: str) -> str:
        return os.path.join(self._root, *name.split("/"))

    @contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        folder, base = os.path.split(self._path(name))
        with open(os.path.join(folder, f".{base}.guard"), "wb") as guard:  # remains: removing it would race
            with suppress(OSError):  # not supported, see the module
                fcntl.flock(guard, fcntl.LOCK_EX)
            yield

    @contextmanager
    def _written(self, name: str, content: pa.Buffer | bytes) -> Iterator[str]:
        temporary = self._path(temporary_name(name))
        folder = os.path.dirname(temporary)
        os.makedirs(folder, exist_ok=True)
        try:
            with open(temporary, "xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            yield temporary
            _sync_folder(folder)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(temporary)


def _sync_folder(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class S3Objects(Objects):
    """See the module."""

    def __init__(self, bucket: str, prefix: str, timeout_s: float, max_attempts: int) -> None:
        if "" in prefix.split("/") and prefix:
            raise UriError(f"empty folder name in s3://{bucket}/{prefix}")
        self._bucket = bucket
        self._prefix = prefix
        self._timeout_s = timeout_s
        self._max_attempts = max_attempts

    def list(self, folder: str) -> Listing:
        """See `Objects`."""
        prefix = self._key(folder)
        answer = self._call(lambda store: obstore.list_with_delimiter(store, prefix=prefix))
        files = [
            Entry(name, entry["size"], f"{entry['e_tag']} {entry['last_modified']}")
            for entry in answer["objects"]
            if (name := entry["path"][len(prefix) :].lstrip("/"))
        ]
        return Listing(sorted(files), sorted(path[len(prefix) :].lstrip("/") for path in answer["common_prefixes"]))

    def read(self, name: str) -> tuple[bytes, str]:
        """See `Objects`."""

        def get(store: Any) -> tuple[bytes, str]:
            result = obstore.get(store, self._key(name))
            return bytes(result.bytes()), result.meta["e_tag"] or ""

        return self._call(get)

    def read_range(self, name: str, start: int, stop: int) -> bytes:
        """See `Objects`."""
        return self._call(lambda store: bytes(obstore.get_range(store, self._key(name), start=start, end=stop)))

    def put(self, name: str, content: pa.Buffer | bytes) -> None:
        """See `Objects`."""
        view = memoryview(content).cast("B")
        multipart = view.nbytes > MULTIPART_ABOVE_BYTES
        self._call(
            lambda store: obstore.put(
                store, self._key(name), view, use_multipart=multipart, chunk_size=MULTIPART_CHUNK_BYTES
            )
        )

    def create(self, name: str, content: bytes) -> str:
        """See `Objects`."""
        try:
            return self._conditional_put(name, content, "create")
        except Changed:
            raise FileExistsError(name) from None

    def replace(self, name: str, content: bytes, version: str) -> str:
        """See `Objects`."""
        return self._conditional_put(name, content, {"e_tag": version})

    def delete(self, name: str) -> None:
        """See `Objects`."""
        with suppress(FileNotFoundError):
            self._call(lambda store: obstore.delete(store, self._key(name)))

    def _conditional_put(self, name: str, content: bytes, mode: Any) -> str:
        try:
            answer = self._call(lambda store: obstore.put(store, self._key(name), content, mode=mode))
        except (AlreadyExistsError, PreconditionError, FileNotFoundError) as error:
            if mode == "create" and isinstance(error, FileNotFoundError):
                raise  # there is no such bucket
            # An earlier attempt whose answer got lost may have been the one that came first.
            try:
                found, version = self.read(name)
            except FileNotFoundError:
                raise Changed(name) from None
            if found != content:
                raise Changed(name) from None
            return version
        return answer["e_tag"] or ""

    def _key(self, name: str) -> str:
        return "/".join(part for part in (self._prefix, name) if part)

    def _call(self, request: Callable[[Any], Result]) -> Result:
        """Retries what can pass; everything but conflicts becomes an ``OSError`` without the request's text."""
        place = redact(f"s3://{self._bucket}/{self._prefix}")
        for attempt in range(1, self._max_attempts + 1):
            try:
                return request(open_s3_store(self._bucket, self._timeout_s))
            except (AlreadyExistsError, PreconditionError):
                raise
            except FileNotFoundError:
                raise FileNotFoundError(f"{place}: {_HINTS[404]}") from None
            except BaseError as error:
                status = _STATUS.search(str(error))
                code = int(status[1]) if status else 0
                passing = code in (0, 408, 409, 429) or (code >= 500 and code != 501)
                if not passing or attempt == self._max_attempts:
                    # The whole text can hold key ids and the string that was signed.
                    reason = f"HTTP {code}" if code else f"no answer ({type(error).__name__})"
                    hint = f" ({_HINTS[code]})" if code in _HINTS else ""
                    raise _ERRORS.get(code, OSError)(f"{place}: {reason} at attempt {attempt}{hint}") from None
            time.sleep(random.uniform(0, min(BACKOFF_CAP_S, BACKOFF_BASE_S * 2 ** (attempt - 1))))
        raise AssertionError("unreachable")


class FsspecObjects(Objects):
    """See the module.

    Args:
        filesystem: of fsspec.
        root: path of the folder in it.
        atomic_puts: whether what is put shows nothing before it is whole.
    """

    def __init__(self, filesystem: Any, root: str, atomic_puts: bool) -> None:
        self._fs = filesystem
        self._root = root
        self._atomic_puts = atomic_puts

    def list(self, folder: str) -> Listing:
        """See `Objects`."""
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

    def read(self, name: str) -> tuple[bytes, str]:
        """See `Objects`."""
        content = self._fs.cat_file(self._path(name))
        return content, _digest(content)

    def read_range(self, name: str, start: int, stop: int) -> bytes:
        """See `Objects`."""
        return self._fs.cat_file(self._path(name), start=start, end=stop)

    def put(self, name: str, content: pa.Buffer | bytes) -> None:
        """See `Objects`."""
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
        """See `Objects`."""
        if self._fs.exists(self._path(name)):
            raise FileExistsError(name)
        self.put(name, content)
        return _digest(content)

    def replace(self, name: str, content: bytes, version: str) -> str:
        """See `Objects`."""
        try:
            if self.read(name)[1] != version:
                raise Changed(name)
        except FileNotFoundError:
            raise Changed(name) from None
        self.put(name, content)
        return _digest(content)

    def delete(self, name: str) -> None:
        """See `Objects`."""
        with suppress(FileNotFoundError):
            self._fs.rm_file(self._path(name))

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"


def _version(info: dict[str, Any]) -> str:
    for key in ("ETag", "etag", "mtime", "LastModified", "updated", "last_modified", "created"):
        if info.get(key):
            return str(info[key])
    return ""
