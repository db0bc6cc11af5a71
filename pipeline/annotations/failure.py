"""Why an image has no annotations."""

from __future__ import annotations

from dataclasses import dataclass

MAX_MESSAGE_LENGTH = 500


@dataclass(frozen=True)
class ImageFailure:
    """Why a row failed: the stage, a stable code for machines, a message for people (no credentials in it)."""

    stage: str
    code: str
    message: str

    def __post_init__(self) -> None:
        if len(self.message) > MAX_MESSAGE_LENGTH:
            object.__setattr__(self, "message", self.message[: MAX_MESSAGE_LENGTH - 1] + "…")
