"""`ObjectFolder` on S3: one PUT a file, conditional on the ETag where asked (``If-None-Match``, ``If-Match``)."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from typing import Any, TypeVar

import obstore
import pyarrow as pa
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

from pipeline.storage.backoff import Backoff
from pipeline.storage.filesystems import open_s3_store, s3_status
from pipeline.storage.objects.base import Changed, Entry, Listing, ObjectFolder, check_seen, check_size
from pipeline.storage.uris import UriError, UriText

BACKOFF = Backoff()
MULTIPART_ABOVE_BYTES = 100_000_000
MULTIPART_CHUNK_BYTES = 16 << 20

_ERRORS = {401: PermissionError, 403: PermissionError, 404: FileNotFoundError}
_HINTS = {404: "no such object, or no such bucket", 501: "the service may have no conditional writes"}

Result = TypeVar("Result")


class S3Objects(ObjectFolder):
    """The objects of a bucket whose keys begin with a prefix.

    Args:
        bucket: name of the bucket.
        prefix: of all keys, without slashes at its ends.
        timeout_s: for one request, from connecting to the last byte.
        max_attempts: requests if the service stumbles, with growing waits between them.
    """

    def __init__(self, bucket: str, prefix: str, timeout_s: float, max_attempts: int) -> None:
        if "" in prefix.split("/") and prefix:
            raise UriError(f"empty folder name in s3://{bucket}/{prefix}")
        self._bucket = bucket
        self._prefix = prefix
        self._timeout_s = timeout_s
        self._max_attempts = max_attempts

    def list(self, folder: str) -> Listing:
        """See `ObjectFolder`."""
        prefix = self._key(folder)
        answer = self._call(lambda store: obstore.list_with_delimiter(store, prefix=prefix))
        files = [
            _entry(name, entry) for entry in answer["objects"] if (name := entry["path"][len(prefix) :].lstrip("/"))
        ]
        return Listing(sorted(files), sorted(path[len(prefix) :].lstrip("/") for path in answer["common_prefixes"]))

    def read(self, name: str, max_bytes: int | None = None) -> tuple[bytes, str]:
        """See `ObjectFolder`."""

        def get(store: Any) -> tuple[bytes, str]:
            result = obstore.get(store, self._key(name))
            check_size(self._shown(name), result.meta["size"], max_bytes)
            return bytes(result.bytes()), result.meta["e_tag"] or ""

        return self._call(get)

    def read_range(self, name: str, start: int, stop: int) -> bytes:
        """See `ObjectFolder`."""
        return self._call(lambda store: bytes(obstore.get_range(store, self._key(name), start=start, end=stop)))

    def modified_at(self, name: str) -> datetime:
        """See `ObjectFolder`."""
        return self._call(lambda store: obstore.head(store, self._key(name))["last_modified"])

    def put(self, name: str, content: pa.Buffer | bytes) -> None:
        """See `ObjectFolder`."""
        view = memoryview(content).cast("B")
        multipart = view.nbytes > MULTIPART_ABOVE_BYTES
        self._call(
            lambda store: obstore.put(
                store, self._key(name), view, use_multipart=multipart, chunk_size=MULTIPART_CHUNK_BYTES
            )
        )

    def create(self, name: str, content: bytes) -> str:
        """See `ObjectFolder`."""
        try:
            return self._conditional_put(name, content, "create")
        except Changed:
            raise FileExistsError(name) from None

    def replace(self, name: str, content: bytes, version: str) -> str:
        """See `ObjectFolder`."""
        return self._conditional_put(name, content, {"e_tag": version})

    def delete(self, name: str, seen: Entry | None = None) -> None:
        """See `ObjectFolder`."""

        def remove(store: Any) -> None:
            if seen is not None:  # before each attempt: between two of them there may be a minute
                check_seen(self._shown(name), _entry(name, obstore.head(store, self._key(name))), seen)
            obstore.delete(store, self._key(name))

        with suppress(FileNotFoundError):
            self._call(remove)

    def delete_empty_folder(self, folder: str) -> None:
        """See `ObjectFolder`: there are only names."""

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

    def _shown(self, name: str) -> str:
        return f"s3://{self._bucket}/{self._key(name)}"

    def _key(self, name: str) -> str:
        return "/".join(part for part in (self._prefix, name) if part)

    def _call(self, request: Callable[[Any], Result]) -> Result:
        """Retries what can pass; everything but conflicts becomes an ``OSError`` without the request's text."""
        place = UriText(f"s3://{self._bucket}/{self._prefix}")
        for attempt in range(1, self._max_attempts + 1):
            try:
                return request(open_s3_store(self._bucket, self._timeout_s))
            except (AlreadyExistsError, PreconditionError):
                raise
            except FileNotFoundError:
                raise FileNotFoundError(f"{place}: {_HINTS[404]}") from None
            except BaseError as error:
                code = s3_status(error)
                passing = code in (0, 408, 409, 429) or (code >= 500 and code != 501)
                if not passing or attempt == self._max_attempts:
                    # The whole text can hold key ids and the string that was signed.
                    reason = f"HTTP {code}" if code else f"no answer ({type(error).__name__})"
                    hint = f" ({_HINTS[code]})" if code in _HINTS else ""
                    raise _ERRORS.get(code, OSError)(f"{place}: {reason} at attempt {attempt}{hint}") from None
            time.sleep(BACKOFF.draw_s(attempt))
        raise AssertionError("unreachable")


def _entry(name: str, meta: Any) -> Entry:
    # The time only where there is no tag: a listing has it to the millisecond, a HEAD to the second.
    return Entry(name, meta["size"], meta["e_tag"] or str(meta["last_modified"]))
