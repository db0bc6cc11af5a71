"""Names for drawn pictures as files."""

from __future__ import annotations

import re

from pipeline.images.decode import IMAGE_SUFFIXES

_LENGTH = 100


class PictureNames:
    """PNG names that differ in more than case: an earlier one's stem gets a number."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def of_stem(self, stem: str) -> str:
        """For a picture that is to be called so."""
        name, number = stem, 1
        while not name or name.lower() in self._taken:
            number += 1
            name = f"{stem or 'image'}_{number}"
        self._taken.add(name.lower())
        return f"{name}.png"

    def of_id(self, image_id: int | str) -> str:
        """For the image of this id: without folders, and so that any file system takes it."""
        stem = re.sub(r"[^\w.-]+", "_", str(image_id).encode("utf-8", "replace").decode())
        suffix = next((suffix for suffix in IMAGE_SUFFIXES if stem.lower().endswith(suffix)), "")
        return self.of_stem(stem[: len(stem) - len(suffix)][-_LENGTH:].lstrip("."))
