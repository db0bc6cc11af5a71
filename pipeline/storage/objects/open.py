"""Which implementation of `ObjectFolder` is behind a URI."""

from __future__ import annotations

from pipeline.storage.filesystems import open_filesystem
from pipeline.storage.objects.any_fsspec import FsspecObjects
from pipeline.storage.objects.base import ObjectFolder
from pipeline.storage.objects.local import LocalObjects
from pipeline.storage.objects.s3 import S3Objects
from pipeline.storage.uris import Uri

TIMEOUT_S = 60.0
MAX_ATTEMPTS = 6
# Their puts show nothing before the last byte; a move would be a copy and a deletion.
_ATOMIC_PUTS = frozenset({"gs", "gcs", "abfs", "abfss", "az", "memory"})


def open_objects(uri: Uri, timeout_s: float = TIMEOUT_S, max_attempts: int = MAX_ATTEMPTS) -> ObjectFolder:
    """The files below a URI. Nothing is created before the first write.

    Args:
        uri: any that ``open_filesystem`` takes.
        timeout_s: for one request to S3.
        max_attempts: requests to S3 if the service stumbles, with growing waits between them.

    Raises:
        UriError: a scheme that cannot be opened.
    """
    if uri.local_path is not None:
        return LocalObjects(uri.local_path)
    if uri.scheme == "s3":
        return S3Objects(uri.host, uri.path.rstrip("/"), timeout_s, max_attempts)
    filesystem, path = open_filesystem(uri)
    return FsspecObjects(filesystem.handler.fs, path.rstrip("/"), uri.scheme in _ATOMIC_PUTS)
