"""How images are read: a section of every job that reads some."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, Strict

from pipeline.config.base import LimitSeconds, Place, PositiveInt, Section
from pipeline.storage.access import AccessPolicy
from pipeline.storage.fetch.rules import FetchSettings


class ImagesConfig(Section, FetchSettings):
    """How images are fetched and decoded. What exceeds a limit becomes a failed row, the run goes on."""

    max_pixels: PositiveInt = Field(
        default=100_000_000,
        description="Largest height x width that is decoded, in pixels. Decoding takes up to 16 bytes for each of "
        "them (docs/benchmarks.md) in every task that decodes.",
    )
    decode_timeout_s: LimitSeconds = Field(
        default=60.0,
        description="Time limit of decoding one image in the annotate job, in seconds. The other jobs have none: "
        "what a picture costs is bounded by its pixels and a count of scans.",
    )
    apply_exif: bool = Field(
        default=True, description="Turn pictures upright as their EXIF orientation says. false: pixels as stored."
    )
    allowed_roots: Annotated[tuple[Place, ...], Strict(False)] | None = Field(
        default=None,
        description="Prefixes that images may be read from (s3://bucket/prefix, /data, https://host/). "
        "null: local files, object stores (s3, gs, az, abfs) and http(s) but for internal hosts; every other scheme "
        "needs a prefix that names it. []: nothing, for manifests that hold the bytes.",
    )

    def access_policy(self) -> AccessPolicy:
        """What may be read; ``allowed_roots: null`` is explained by `AccessPolicy`."""
        return AccessPolicy(self.allowed_roots)
