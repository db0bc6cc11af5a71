"""Where an export goes: a file or a folder, local or in an object store, that appears whole or not at all.

A local result is made under a hidden name beside its place and renamed at the end. In an object store a file is one
multipart upload, which shows nothing before it is complete; a folder is complete when its ``export.json``, written
last, says ``"state": "finished"``.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any, BinaryIO

import fsspec

from pipeline.errors import RunError, UserError
from pipeline.export.errors import ExportError
from pipeline.storage.filesystems import fsspec_class
from pipeline.storage.objects.base import ReadFailed
from pipeline.storage.objects.open import open_objects
from pipeline.storage.uris import Uri, UriError
from pipeline.storage.whole_file import temporary_name, write_whole

MARKER = "export.json"
_BUFFER_BYTES = 1 << 20
_MAX_MARKER_BYTES = 64 << 20
_STATES = ("unfinished", "finished")
_CLIENTS = {"botocore", "aiobotocore", "aiohttp"}


class Folder(ABC):
    """A folder that is being written. Names are relative, with ``/``."""

    @abstractmethod
    def put(self, name: str, content: bytes) -> None:
        """Write a small file; several threads may call it."""

    @abstractmethod
    def open(self, name: str) -> AbstractContextManager[BinaryIO]:
        """Write a file bit by bit; several may be open."""

    def link(self, name: str, path: str) -> None:
        """Make a symbolic link to a local file, ``path``; several threads may call it.

        Raises:
            ExportError: there are no links here, or the file lies in what is to be replaced.
        """
        raise ExportError(f"{name} cannot be a link in an object store")

    def finish(self, report: dict[str, Any]) -> None:
        """Write the file that says that all others are there."""
        self.put(MARKER, _marker("finished", report))


@contextmanager
def whole_file(uri: Uri, overwrite: bool) -> Iterator[BinaryIO]:
    """A file to write to; it is there once the block ends without an error.

    Raises:
        ExportError: it exists, and ``overwrite`` is not set.
        UriError: nothing can be written there.
        OSError: the storage fails.
    """
    writing: AbstractContextManager[BinaryIO]
    if (path := uri.local_path) is not None:
        _refuse(os.path.isdir(path) or (os.path.lexists(path) and not overwrite), uri, os.path.isdir(path))
        writing = _local_file(path, uri, overwrite)
    else:
        filesystem, path = _remote(uri)
        with _named(uri):
            _refuse(not overwrite and filesystem.exists(path), uri)
        writing = _remote_file(filesystem, path, uri)
    with writing as file:
        yield file


@contextmanager
def whole_folder(uri: Uri, overwrite: bool) -> Iterator[Folder]:
    """A folder to write to.

    Args:
        uri: where the folder is to be.
        overwrite: replace the folder with all that is in it, provided that it is an earlier export.

    Raises:
        ExportError: there is something, and it may not be replaced.
        UriError: nothing can be written there.
        OSError: the storage fails.
    """
    if (path := uri.local_path) is not None:
        writing = _local_folder(path, uri, overwrite)
    else:
        writing = _remote_folder(uri, overwrite)
    with writing as folder:
        yield folder


def _refuse(exists: bool, uri: Uri, is_folder: bool = False) -> None:
    if exists:
        advice = "give the name of a file" if is_folder else "--overwrite replaces it"
        raise ExportError(f"{uri} exists{' and is a folder' if is_folder else ''}: {advice}")


def _refuse_foreign(uri: Uri, overwrite: bool) -> None:
    """For a place that is not empty."""
    if not overwrite:
        raise ExportError(f"{uri} exists: --overwrite replaces it")
    if not _is_export(uri):
        raise ExportError(f"{uri} is no earlier export (it has no {MARKER} of one): remove it yourself")


def _is_export(uri: Uri) -> bool:
    try:
        marker = json.loads(open_objects(uri).read(MARKER, _MAX_MARKER_BYTES)[0])
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(marker, dict) and marker.get("state") in _STATES


@contextmanager
def _local_file(path: str, uri: Uri, overwrite: bool) -> Iterator[BinaryIO]:
    with write_whole(path) as temporary:
        with temporary.open("xb", buffering=_BUFFER_BYTES) as file:
            yield file
        _refuse(not overwrite and os.path.lexists(path), uri)  # exports take hours, in which others write


@contextmanager
def _local_folder(path: str, uri: Uri, overwrite: bool) -> Iterator[Folder]:
    if os.path.lexists(path) and not (os.path.isdir(path) and not os.listdir(path)):
        _refuse_foreign(uri, overwrite)
    path = os.path.realpath(path)  # a link to a folder stays one
    staging = temporary_name(path)
    os.makedirs(staging)
    try:
        yield _LocalFolder(staging, path)
        _put_in_place(staging, path, uri, overwrite)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _put_in_place(staging: str, path: str, uri: Uri, overwrite: bool) -> None:
    """Rename the folder, and remove what it replaces once it is there: exports take hours, in which others write."""
    with suppress(FileExistsError, NotADirectoryError):
        try:
            os.rename(staging, path)  # onto nothing, or an empty folder
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                raise
        else:
            return
    _refuse_foreign(uri, overwrite)
    old = temporary_name(path)
    try:
        os.rename(path, old)
        os.rename(staging, path)
    except BaseException:
        if os.path.lexists(old) and not os.path.lexists(path):
            os.rename(old, path)
        raise
    shutil.rmtree(old, ignore_errors=True)


class _LocalFolder(Folder):
    def __init__(self, path: str, place: str) -> None:
        self._path = path
        self._place = place

    def put(self, name: str, content: bytes) -> None:
        with self.open(name) as file:
            file.write(content)

    @contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        with open(self._made(name), "xb") as file:
            yield file

    def link(self, name: str, path: str) -> None:
        if os.path.commonpath([self._place, path]) == self._place:
            raise ExportError(f"{path} lies in {self._place}, which this export replaces: choose another place")
        os.symlink(path, self._made(name))

    def _made(self, name: str) -> str:
        """The path of a file, whose folder is there."""
        path = os.path.join(self._path, *name.split("/"))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        return path


def _remote(uri: Uri) -> tuple[Any, str]:
    """The fsspec file system of a URI, and the path in it."""
    if uri.is_http:
        raise UriError("nothing can be written to http(s): give a local path or an object store")
    fsspec_class(uri.scheme)
    text = f"s3://{uri.host}/{uri.path}" if uri.scheme == "s3" else uri.secret_text
    try:
        # Not one of fsspec's cached instances: it may have been opened under another environment.
        return fsspec.core.url_to_fs(text.rstrip("/"), skip_instance_cache=True)
    except Exception as error:  # constructors raise whatever their SDK does
        raise UriError(f"{str(uri)!r} cannot be opened: {type(error).__name__}") from None


@contextmanager
def _named(uri: Uri) -> Iterator[None]:
    """Errors of an object store's client, which come without the place and partly without a class of Python's own."""
    try:
        yield
    except (UserError, RunError, ReadFailed):
        raise
    except OSError as error:
        if error.filename is not None or "://" in str(error):  # it names a place, which may be that of the labels
            raise
        raise type(error)(f"{uri} cannot be written: {uri.hide_in(str(error))}") from None
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in _CLIENTS:
            raise
        raise ConnectionError(f"{uri} cannot be written: {uri.hide_in(str(error))}") from None


@contextmanager
def _remote_file(filesystem: Any, path: str, uri: Uri) -> Iterator[BinaryIO]:
    with _named(uri), filesystem.transaction, filesystem.open(path, "wb") as file:
        yield file


@contextmanager
def _remote_folder(uri: Uri, overwrite: bool) -> Iterator[Folder]:
    filesystem, path = _remote(uri)
    with _named(uri):
        if filesystem.exists(path):
            _refuse_foreign(uri, overwrite)
            filesystem.rm(path, recursive=True)
        folder = _RemoteFolder(uri)
        folder.put(MARKER, _marker("unfinished", {}))
    yield folder


class _RemoteFolder(Folder):
    def __init__(self, uri: Uri) -> None:
        self._uri = uri
        self._objects = open_objects(uri)

    def put(self, name: str, content: bytes) -> None:
        self._objects.put(name, content)

    def open(self, name: str) -> AbstractContextManager[BinaryIO]:
        uri = self._uri / name
        return _remote_file(*_remote(uri), uri)  # a client of its own: two open files of one would share a transaction


def _marker(state: str, report: dict[str, Any]) -> bytes:
    return json.dumps({"state": state, **report}, indent=2, ensure_ascii=False).encode()
