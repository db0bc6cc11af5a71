"""What a fetch may cost, and how it fails: the same for every client."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipeline.errors import RunError
from pipeline.storage.uris import UriText

_RETRYABLE = frozenset({"timeout", "throttled", "unavailable"})


class FetchError(RunError):
    """An object that could not be read. Neither message nor attributes hold credentials or query strings.

    Attributes:
        code: ``not_found``, ``access_denied``, ``too_large``, ``not_a_file`` (directory, FIFO, device, key
            ending in a slash), ``uri_not_allowed``, ``bad_uri``, ``unsupported_scheme``, ``wrong_region``,
            ``bad_certificate``, ``rejected`` (another 4xx), ``failed`` (unforeseen); and, worth another try,
            ``timeout``, ``throttled``, ``unavailable``.
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


class FetchSettings(BaseModel):
    """Limits of one fetch."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_object_bytes: int = Field(
        default=256 * 1024 * 1024, gt=0, description="Largest encoded image that is read, in bytes."
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


def check_size(size_bytes: int | None, uri: UriText, settings: FetchSettings) -> None:
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
