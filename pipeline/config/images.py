"""How images are read: a section of every job that reads some."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, Strict, model_validator

from pipeline.config.base import (
    PositiveFloat,
    PositiveInt,
    Section,
    Uri,
)
from pipeline.storage.fetch.fetcher import FetchSettings
from pipeline.storage.uris import AccessPolicy

_FETCH = FetchSettings()


class ImagesConfig(Section):
    """How images are fetched and decoded. What exceeds a limit becomes a failed row, the run goes on."""

    max_pixels: PositiveInt = Field(
        default=100_000_000, description="Largest height x width that is decoded, in pixels."
    )
    apply_exif: bool = Field(
        default=True, description="Turn pictures upright as their EXIF orientation says. false: pixels as stored."
    )
    allowed_roots: Annotated[tuple[Uri, ...], Strict(False)] | None = Field(
        default=None,
        description="Prefixes that images may be read from (s3://bucket/prefix, /data, https://host/). "
        "null: anything but internal hosts. []: nothing, for manifests that hold the bytes.",
    )
    max_object_bytes: PositiveInt = Field(
        default=_FETCH.max_object_bytes, description="Largest encoded image that is read, in bytes."
    )
    attempt_timeout_s: PositiveFloat = Field(
        default=_FETCH.attempt_timeout_s, description="Time limit of one attempt to fetch an image, in seconds."
    )
    deadline_s: PositiveFloat = Field(
        default=_FETCH.deadline_s,
        description="Time limit of all attempts at one image and the waits between, in seconds.",
    )
    max_attempts: PositiveInt = Field(default=_FETCH.max_attempts, description="Attempts at one image; 1: no retries.")
    fetch_concurrency: Annotated[int, Field(ge=1, le=1024)] = Field(
        default=_FETCH.concurrency, description="Images that one fetch task requests at the same time."
    )

    @model_validator(mode="after")
    def _times_fit(self) -> ImagesConfig:
        if self.attempt_timeout_s > self.deadline_s:
            raise ValueError("attempt_timeout_s must be at most deadline_s, which covers all attempts")
        return self

    def fetch_settings(self) -> FetchSettings:
        """The limits as the fetcher takes them."""
        return FetchSettings(
            attempt_timeout_s=self.attempt_timeout_s,
            deadline_s=self.deadline_s,
            max_attempts=self.max_attempts,
            max_object_bytes=self.max_object_bytes,
            concurrency=self.fetch_concurrency,
        )

    def access_policy(self) -> AccessPolicy:
        """What may be read; ``allowed_roots: null`` allows everything but internal hosts."""
        return AccessPolicy(self.allowed_roots)
