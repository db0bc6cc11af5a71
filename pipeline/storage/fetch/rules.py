"""What a fetch may cost, and how it fails: the same for every client."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.errors import RunError
from pipeline.storage.uris import redact

_RETRYABLE = frozenset({"timeout", "throttled", "unavailable"})


class FetchError(RunError):
    """An object that could not be read. Neither message nor attributes hold credentials or query strings.

    Attributes:
        code: ``not_found``, ``access_denied``, ``too_large``, ``not_a_file`` (directory, FIFO, device, key
            ending in a slash), ``uri_not_allowed``, ``bad_uri``, ``unsupported_scheme``, ``wrong_region``,
            ``bad_certificate``, ``rejected`` (another 4xx), ``failed`` (unforeseen); and, worth another try,
            ``timeout``, ``throttled``, ``unavailable``.
        uri: redacted.
        detail: what happened, for people.
        retryable: whether the same request may succeed later.
    """

    def __init__(self, code: str, uri: str, detail: str) -> None:
        self.code = code
        self.uri = redact(str(uri))
        self.detail = detail
        super().__init__(f"{code}: {self.uri}: {detail}")

    @property
    def retryable(self) -> bool:
        return self.code in _RETRYABLE

    def __reduce__(self) -> tuple[type[FetchError], tuple[str, str, str]]:
        return type(self), (self.code, self.uri, self.detail)


@dataclass(frozen=True)
class FetchSettings:
    """Limits of one fetch.

    Attributes:
        attempt_timeout_s: for one attempt, from connecting to the last byte.
        deadline_s: for all attempts and the waits between them. An attempt that could not use its full time
            before the deadline is not begun, so no fetch outlasts it.
        max_attempts: 1 switches retries off.
        backoff_base_s: the wait after attempt n is uniform in ``[0, min(cap, base * 2 ** (n - 1))]``.
        backoff_cap_s: see there.
        max_object_bytes: larger objects are refused.
        concurrency: threads of :meth:`Fetcher.fetch_many`.
    """

    attempt_timeout_s: float = 20.0
    deadline_s: float = 90.0
    max_attempts: int = 5
    backoff_base_s: float = 0.2
    backoff_cap_s: float = 10.0
    max_object_bytes: int = 256 * 1024 * 1024
    concurrency: int = 64

    def __post_init__(self) -> None:
        if not 0 < self.attempt_timeout_s <= self.deadline_s:
            raise ValueError("attempt_timeout_s must be positive and at most deadline_s")
        if self.max_attempts < 1 or self.concurrency < 1 or self.max_object_bytes < 1:
            raise ValueError("max_attempts, concurrency and max_object_bytes must be at least 1")
        if not 0 <= self.backoff_base_s <= self.backoff_cap_s:
            raise ValueError("backoff_base_s must be at least 0 and at most backoff_cap_s")


def check_size(size_bytes: int | None, uri: str, settings: FetchSettings) -> None:
    """Raise if an object of this size, ``None`` if not known, is too large.

    Raises:
        FetchError: ``too_large``.
    """
    if size_bytes is not None and size_bytes > settings.max_object_bytes:
        limit = settings.max_object_bytes
        raise FetchError("too_large", uri, f"{size_bytes} bytes or more, the limit is {limit}")


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
