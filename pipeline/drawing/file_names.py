"""Drawn pictures as files: their names, and never in the place of another's."""

from __future__ import annotations

import os
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pipeline.drawing.draw import Picture
from pipeline.errors import UserError
from pipeline.images.decode import IMAGE_SUFFIXES
from pipeline.storage.file_names import name_key, safe_name, split_suffix
from pipeline.storage.whole_file import write_whole

_PROGRAM = "maskfleet"
_MARK = b"tEXtSoftware\0" + _PROGRAM.encode()  # stands before the pixels


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


class InTheWay(UserError):
    """A file has the name of one that is to be written, and is not shown to be an earlier one of ours."""


def check_free(path: Path, mark: bytes = _MARK) -> None:
    """Return if a file can be written without another's being lost.

    Args:
        path: of the file.
        mark: what an earlier one of ours has in its first bytes; without it, what drawn pictures have.

    Raises:
        InTheWay: it would be lost.
        OSError: it cannot be told.
    """
    # What is neither file nor folder is not opened: a pipe would be waited for, and a link into nothing lost.
    odd = os.path.lexists(path) and not (path.is_file() or path.is_dir())
    try:
        ours = not odd and mark in _first_bytes(path)
    except FileNotFoundError:
        return
    if not ours:
        raise InTheWay(f"{path} is in the way, and not of this job: move it, or choose another folder")


def _first_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(1000)


def save_picture(picture: Picture, path: Path) -> None:
    """Write a drawn picture as PNG, whole or not at all, over an earlier one at most; it says what drew it.

    Raises:
        InTheWay: see `check_free`.
        OSError: it cannot be written.
    """
    check_free(path)
    info = PngInfo()
    info.add_text("Software", _PROGRAM)
    with write_whole(path) as temporary:
        Image.fromarray(picture).save(temporary, "PNG", pnginfo=info)
