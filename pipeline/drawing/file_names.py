"""Names for drawn pictures as files."""

from __future__ import annotations

from pipeline.images.decode import IMAGE_SUFFIXES
from pipeline.storage.file_names import name_key, safe_name, split_suffix


class PictureNames:
    """PNG names that any file system takes and keeps apart: an earlier one's stem gets a number."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def of_stem(self, stem: str) -> str:
        """For a picture that is to be called so."""
        stem = safe_name(stem or "image")
        name, number = stem, 1
        while name_key(name) in self._taken:
            number += 1
            name = f"{stem}_{number}"
        self._taken.add(name_key(name))
        return f"{name}.png"

    def of_id(self, image_id: int | str) -> str:
        """For the image of this id: without folders."""
        stem, suffix = split_suffix(str(image_id).replace("/", "_"))
        return self.of_stem(stem if suffix.lower() in IMAGE_SUFFIXES else stem + suffix)
