"""Which content of an object was read, or is listed: what tells one content under a name from another."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from typing import Any, NamedTuple

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_ETAGS = ("ETag", "etag")
# As fsspec's file systems call it; where content never changes under a name but is put anew, its creation.
_TIMES = ("mtime", "LastModified", "last_modified", "updated", "created")


class ObjectVersion(NamedTuple):
    """A version of an object, as far as its store tells; ``None`` where it does not.

    Attributes:
        etag: see `plain_etag`; ``sha256:<hex>`` of content that no store gave.
        size_bytes: of the content.
        modified_us: when it was last changed: microseconds since 1970 began in UTC.
        version_id: of a bucket that keeps versions.
    """

    etag: str | None = None
    size_bytes: int | None = None
    modified_us: int | None = None
    version_id: str | None = None

    @property
    def token(self) -> str:
        """What tells it from other versions: the ETag, or else the time of the last change; ``""`` for neither."""
        return self.etag or str(self.modified_us or "")

    @classmethod
    def told(
        cls,
        size_bytes: int | None,
        etag: str | None = None,
        modified: datetime | None = None,
        version_id: str | None = None,
    ) -> ObjectVersion:
        """As the answers of S3, and of other stores, tell it.

        Args:
            modified: in UTC, if it has no zone. The very beginning of 1970 is what obstore says where nothing was said.
            version_id: ``null`` is that of a bucket that keeps none.
        """
        modified_us = None if modified is None else microseconds(modified) or None
        return cls(plain_etag(etag), size_bytes, modified_us, None if version_id == "null" else version_id or None)


def plain_etag(etag: str | None) -> str | None:
    """An ETag without its quotes; weak ones (``W/"..."``) as they are; ``None`` for none."""
    if etag and len(etag) > 1 and etag[0] == etag[-1] == '"':
        etag = etag[1:-1]
    return etag or None


def microseconds(time: datetime) -> int:
    """Since 1970 began in UTC, which is the zone of times without one."""
    zoned = time if time.tzinfo else time.replace(tzinfo=timezone.utc)
    return (zoned - _EPOCH) // timedelta(microseconds=1)


def version_of_bytes(content: bytes) -> ObjectVersion:
    """Of content that no store gave."""
    return ObjectVersion(f"sha256:{hashlib.sha256(content).hexdigest()}", len(content))


def version_of_status(status: os.stat_result, size_bytes: int | None = None) -> ObjectVersion:
    """Of a local file, of which so many bytes were read if not all that it says."""
    return ObjectVersion(None, status.st_size if size_bytes is None else size_bytes, status.st_mtime_ns // 1000)


def version_of_info(info: Mapping[str, Any]) -> ObjectVersion:
    """What fsspec says about a file, in the words of whatever file system it is."""
    etag = next((str(info[key]) for key in _ETAGS if info.get(key)), None)
    modified = next((time for key in _TIMES if (time := _time(info.get(key))) is not None), None)
    return ObjectVersion.told(info.get("size"), etag, modified)


def _time(value: Any) -> datetime | None:
    """Of a time, a number of seconds, or a text of ISO 8601."""
    try:
        if isinstance(value, (int, float)):
            return _EPOCH + timedelta(seconds=value)
        if isinstance(value, str):
            return datetime.fromisoformat(value.replace("Z", "+00:00"))
    except (ValueError, OverflowError):
        return None
    return value if isinstance(value, datetime) else None
