"""The files below a folder or prefix, on any file system, in one order everywhere.

Memory is bounded on local file systems (a folder) and S3 (a page); other file systems list everything at once.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import pyarrow.fs as pafs

from pipeline.storage.errors import StorageError, cannot_read, explained, not_there
from pipeline.storage.filesystems import open_aws_client, open_filesystem
from pipeline.storage.uris import Uri, hide_secrets
from pipeline.storage.versions import ObjectVersion, version_of_info, version_of_status

PARQUET_SUFFIXES = (".parquet", ".pq")

# What Spark, Hive and Arrow (`ignore_prefixes`) pass over in a folder of data, files and folders, beside hidden ones.
_NO_DATA = "_"

_TIMEOUT_S = 30.0  # without a byte of a page
_MAX_ATTEMPTS = 6  # at a page


class ListedFile(NamedTuple):
    """A file in a listing: its path in the folder, and its version as far as the listing tells."""

    path: str
    version: ObjectVersion


def list_files(uri: Uri, outside: Collection[Uri] = (), with_versions: bool = False) -> Iterator[ListedFile]:
    """The files below a folder or prefix, with paths relative to it, in the order of their code points.

    Keys of object stores come as they are. Hidden files, and those in hidden folders, are left out: a part of their
    path begins with a dot (and is not ``.`` or ``..``, which are names like others in a key). Symbolic links are
    followed, but not round in circles. A local name that is not UTF-8 has lone surrogates, as in Python.

    Args:
        uri: of the folder or prefix.
        outside: folders whose files are not listed, where they lie in this one.
        with_versions: look at each file where a listing has but names, which on a mounted disk takes a moment each.

    Raises:
        StorageError: the folder cannot be listed.
    """
    filesystem, path = open_filesystem(uri)
    of_same_kind = [other for other in outside if other.scheme == uri.scheme]
    prefixes = tuple(open_filesystem(other)[1].rstrip("/") + "/" for other in of_same_kind)
    try:
        if uri.scheme == "file":
            found = _walk(path, "", tuple(_identities(prefixes)), with_versions)
        elif uri.scheme == "s3":
            found = _list_s3(path)
        else:
            found = _list_at_once(filesystem, path)
        for file in found:
            if not f"{path}/{file.path}".startswith(prefixes) and not is_hidden(file.path):
                yield file
    except OSError as error:
        raise cannot_read(uri, error) from None


def is_parquet(relative: str) -> bool:
    """Whether a file in a folder of data is Parquet, told by its suffix, and not one that all readers pass over."""
    return relative.lower().endswith(PARQUET_SUFFIXES) and not any(
        part.startswith(_NO_DATA) for part in relative.split("/")
    )


def is_hidden(relative: str) -> bool:
    """Whether a part of a path in a folder begins with a dot, and is not ``.`` or ``..``."""
    if not relative.startswith(".") and "/." not in relative:
        return False
    return any(part.startswith(".") and part not in (".", "..") for part in relative.split("/"))


def is_folder(uri: Uri) -> bool:
    """Whether a folder or prefix is there, rather than a file.

    Raises:
        StorageError: nothing is there, or it cannot be told.
    """
    filesystem, path = open_filesystem(uri)
    try:
        with explained(uri):
            info = filesystem.get_file_info(path)
    except OSError as error:
        raise cannot_read(uri, error) from None
    if info.type == pafs.FileType.NotFound:
        raise not_there(uri, filesystem, path)
    return info.type == pafs.FileType.Directory


def is_there(uri: Uri) -> bool:
    """Whether there is a file or a folder.

    Raises:
        StorageError: it cannot be told.
    """
    filesystem, path = open_filesystem(uri)
    with explained(uri):
        return bool(filesystem.get_file_info(path).type != pafs.FileType.NotFound)


def check_there(places: Mapping[str, Uri]) -> None:
    """Return if there is a file or a folder at each place: a job asks before it loads what takes long.

    Args:
        places: by the settings that name them.

    Raises:
        StorageError: nothing is there, or it cannot be told.
    """
    for setting, uri in places.items():
        try:
            is_folder(uri)
        except StorageError as error:
            raise StorageError(f"{setting}: {error}") from None


def _identities(paths: Iterable[str]) -> Iterator[tuple[int, int]]:
    """What tells folders apart by whatever path they are reached; of those that are there."""
    for path in paths:
        with suppress(OSError):
            status = os.stat(path)
            yield status.st_dev, status.st_ino


def _walk(path: str, prefix: str, outside: tuple[tuple[int, int], ...], with_versions: bool) -> Iterator[ListedFile]:
    """The files of a folder, unless it is one of those outside, to which those that it lies in come."""
    status = os.stat(path)
    here = (status.st_dev, status.st_ino)
    if here in outside:
        return
    with os.scandir(path) as listed:
        # A folder sorts as "name/": then the whole walk is in the order of full paths.
        entries = sorted((entry.name + "/" if entry.is_dir() else entry.name) for entry in listed)
    for name in entries:
        if name.startswith("."):
            continue
        if name.endswith("/"):
            yield from _walk(os.path.join(path, name), prefix + name, (*outside, here), with_versions)
        else:
            version = _local_version(os.path.join(path, name)) if with_versions else ObjectVersion()
            yield ListedFile(prefix + name, version)


def _local_version(path: str) -> ObjectVersion:
    try:
        return version_of_status(os.stat(path))
    except OSError:  # a link to nowhere, or gone since: whoever reads it says so
        return ObjectVersion()


def _list_s3(path: str) -> Iterator[ListedFile]:
    # botocore hands out a page at a time, in the order of the keys, takes keys literally, and retries;
    # pyarrow would hold all of them at once, obstore refuses keys with an empty segment.
    from botocore.exceptions import BotoCoreError, ClientError  # type: ignore[import-untyped]

    bucket, _, prefix = path.partition("/")
    prefix = f"{prefix}/" if prefix else ""
    try:
        client = open_aws_client(bucket, _TIMEOUT_S, _MAX_ATTEMPTS)
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            for entry in page.get("Contents", ()):
                if not entry["Key"].endswith("/"):
                    version = ObjectVersion.told(entry["Size"], entry.get("ETag"), entry["LastModified"])
                    yield ListedFile(entry["Key"][len(prefix) :], version)
    except (BotoCoreError, ClientError) as error:
        raise StorageError(f"s3://{path} cannot be listed: {hide_secrets(str(error))}") from None


def _list_at_once(filesystem: pafs.FileSystem, path: str) -> Iterator[ListedFile]:
    base = path.rstrip("/") + "/"
    found: dict[str, Any] = filesystem.handler.fs.find(path, detail=True)  # not Arrow's own, which mends the names
    for name, info in sorted(found.items()):
        if info["type"] == "file" and name.startswith(base):
            yield ListedFile(name.removeprefix(base), version_of_info(info))
