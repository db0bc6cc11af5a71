"""What a fetch may cost, and how it fails: the same for every client."""

from __future__ import annotations

import threading
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipeline.errors import RunError
from pipeline.storage.uris import TarMember, UriText
from pipeline.storage.versions import ObjectVersion

_RETRYABLE = frozenset({"timeout", "throttled", "unavailable"})


class FetchError(RunError):
    """An object that could not be read. Neither message nor attributes hold credentials or query strings.

    Attributes:
        code: ``not_found``, ``access_denied``, ``too_large``, ``not_a_file`` (directory, FIFO, device, key
            ending in a slash), ``uri_not_allowed``, ``bad_uri``, ``unsupported_scheme``, ``wrong_region``,
            ``bad_certificate``, ``rejected`` (another 4xx), ``failed`` (unforeseen); of a member of a tar shard
            ``shard_changed`` (since it was indexed), ``truncated`` (the shard ends before it), ``no_ranges`` (its
            server sends all of it or nothing); and, worth another try, ``timeout``, ``throttled``, ``unavailable``.
        uri: of the object, without its secrets.
        detail: what happened, for people.
        retryable: whether the same request may succeed later.
    """

    def __init__(self, code: str, uri: UriText, detail: str) -> None:
        self.code = code
        self.uri = str(uri)
        self.detail = detail
        super().__init__(f"{code}: {self.uri}: {detail}")

    @property
    def retryable(self) -> bool:
        return self.code in _RETRYABLE

    def __reduce__(self) -> tuple[type[FetchError], tuple[str, UriText, str]]:
        return type(self), (self.code, UriText(self.uri), self.detail)


class NoRoom(FetchError):
    """An object that was left for later: what is fetched beside it leaves no room for so many bytes."""

    def __init__(self, uri: UriText, size_bytes: int) -> None:
        super().__init__("no_room", uri, f"{size_bytes} bytes or more")
        self.size_bytes = size_bytes


class FetchSettings(BaseModel):
    """Limits of one fetch."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_object_bytes: int = Field(
        default=256 * 1024 * 1024, gt=0, description="Largest encoded image that is read, in bytes."
    )
    max_bytes_at_once: int = Field(
        default=256 * 1024 * 1024,
        gt=0,
        description="Encoded images that one task holds at once, in bytes, or a single one that is larger: half of "
        "them are decoded while the other half is fetched.",
    )
    attempt_timeout_s: float = Field(
        default=20.0, gt=0, description="Time limit of one attempt to fetch an image, in seconds."
    )
    deadline_s: float = Field(
        default=90.0, gt=0, description="Time limit of all attempts at one image and the waits between, in seconds."
    )
    max_attempts: int = Field(default=5, gt=0, description="Attempts at one image; 1: no retries.")
    fetch_concurrency: int = Field(
        default=64, ge=1, le=1024, description="Images that one fetch task requests at the same time."
    )

    @model_validator(mode="after")
    def _times_fit(self) -> FetchSettings:
        if self.attempt_timeout_s > self.deadline_s:
            raise ValueError("attempt_timeout_s must be at most deadline_s, which covers all attempts")
        return self


class Fetched(NamedTuple):
    """The bytes of an object, and which version of it they are."""

    data: bytes
    version: ObjectVersion


class ByteBudget:
    """Bytes that are held at once, by objects that are fetched side by side. One alone may exceed it.

    Args:
        limit_bytes: how many.
        whole: the budget that this one is a part of.
    """

    def __init__(self, limit_bytes: int, whole: ByteBudget | None = None) -> None:
        self._limit = limit_bytes
        self._whole = whole
        self._used = 0
        self._lock = threading.Lock()

    def change(self, held: int, wanted: int) -> bool:
        """Hold ``wanted`` bytes in the place of ``held``; False, and nothing changes, if there is no room."""
        with self._lock:
            used = self._used - held + wanted
            if wanted > held and used > max(self._limit, wanted):
                return False
            if self._whole is not None and not self._whole.change(held, wanted):
                return False
            self._used = used
            return True

    def give_up(self) -> None:
        """Nothing of it is held any more."""
        self.change(self._used, 0)


class Allowance:
    """What one object may take: no more than `FetchSettings.max_object_bytes`, and its part of a budget."""

    def __init__(self, uri: UriText, settings: FetchSettings, budget: ByteBudget) -> None:
        self._uri = uri
        self._limit = settings.max_object_bytes
        self._budget = budget
        self._held = 0

    def claim(self, size_bytes: int | None) -> None:
        """Take the room for an object of this size, ``None`` if not known.

        Raises:
            FetchError: ``too_large``; `NoRoom`.
        """
        if size_bytes is None or size_bytes <= self._held:
            return
        if size_bytes > self._limit:
            raise FetchError("too_large", self._uri, f"{size_bytes} bytes or more, the limit is {self._limit}")
        if not self._budget.change(self._held, size_bytes):
            raise NoRoom(self._uri, size_bytes)
        self._held = size_bytes

    def give_back(self) -> None:
        """The object is not held any more."""
        self._budget.change(self._held, 0)
        self._held = 0


def check_shard(uri: UriText, member: TarMember, version: ObjectVersion) -> None:
    """Raise unless the shard is the one that was indexed, by the answer that its bytes come with.

    Raises:
        FetchError: ``shard_changed``.
    """
    if member.version and version.token != member.version:
        raise FetchError("shard_changed", uri, "the tar shard is another one than was indexed: index it again")


def check_whole(uri: UriText, member: TarMember, size_bytes: int) -> None:
    """Raise unless so many bytes are all of a member.

    Raises:
        FetchError: ``truncated``.
    """
    if size_bytes < member.size_bytes:
        raise FetchError("truncated", uri, "the tar shard ends before this member does")


def no_ranges(uri: UriText) -> FetchError:
    """Where a member was asked for and the whole shard came. All before a picture would be read again for each."""
    return FetchError(
        "no_ranges", uri, "the server sends no parts of files: copy the shard to where ranges can be read"
    )


def code_of_status(status: int) -> str:
    """What an HTTP status other than success means, as a code of :class:`FetchError`."""
    if status in (401, 403):
        return "access_denied"
    if status in (404, 410):
        return "not_found"
    if status in (408, 504):
        return "timeout"
    if status in (429, 503):
        return "throttled"
    return "unavailable" if status >= 500 else "rejected"
