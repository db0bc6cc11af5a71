"""File names made of ids and paths: names that every file system and object store takes, and no two of them the same.

The rule is the strictest of them all, Windows', so that what was written on Linux can be copied anywhere:

- control characters, lone surrogates and ``< > : " \\ | ? *`` become ``_``;
- so does a dot at the beginning (hidden, and passed over by ``glob``), and dots and blanks at the end;
- a name of a device (``NUL``, ``com1.txt``) gets ``_`` before it;
- a name of more than `MAX_NAME_BYTES` is cut in the middle, a path of more than `MAX_PATH_BYTES` loses its folders, and
  both get a digest of what they were;
- names that differ in case or Unicode normalisation alone are the same.
"""

from __future__ import annotations

import hashlib
import re
import sqlite3
import unicodedata
from collections.abc import Iterator
from itertools import count

# What is left of 255 bytes for a suffix more and for a digest.
MAX_NAME_BYTES = 200
# Of S3's 1,024 for a key, the place of the folder takes some.
MAX_PATH_BYTES = 700

_FORBIDDEN = re.compile('[\0-\x1f\x7f-\x9f<>:"\\\\|?*\ud800-\udfff]')
_DEVICE = re.compile(r"(?i)(con|prn|aux|nul|(com|lpt)[0-9\u00b9\u00b2\u00b3]|conin\$|conout\$) *(\.|$)")
_LONGEST_SUFFIX = 16


def safe_name(text: str) -> str:
    """A name without folders, the text itself wherever it may be one."""
    name = _FORBIDDEN.sub("_", text.replace("/", "_"))
    if name.startswith("."):
        name = f"_{name[1:]}"
    kept = name.rstrip(". ")
    name = kept + "_" * (len(name) - len(kept))
    if _DEVICE.match(name):
        name = f"_{name}"
    return _shortened(name, text) or "_"


def safe_path(text: str) -> str:
    """A relative path, with ``/``, of safe names; folders that lead nowhere or up are left out."""
    names = [safe_name(part) for part in text.split("/") if part not in ("", ".", "..")] or ["_"]
    path = "/".join(names)
    return path if len(path.encode()) <= MAX_PATH_BYTES else f"{_digest(text)}/{names[-1]}"


def split_suffix(path: str) -> tuple[str, str]:
    """A path without the suffix of its last name, and the suffix with its dot; ``""`` where it has none."""
    stem, dot, suffix = path.rpartition(".")
    has_one = dot and stem.rpartition("/")[2] and "/" not in suffix
    return (stem, dot + suffix) if has_one else (path, "")


def name_key(name: str) -> str:
    """What is equal for names that are the same on some file system."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def alternatives(path: str, key: int | str) -> Iterator[str]:
    """A safe path, and others like it for where it is taken: in its folder, and, if that is a file's name, above all.

    Args:
        path: the one that is wanted.
        key: another one for every call, such as an id; the same key gives the same paths.
    """
    yield path
    for number in count():
        stem, suffix = split_suffix(path)
        marked = f"{stem}_{_digest(f'{number} {key}')}{suffix}"
        yield marked
        yield marked.rpartition("/")[2]


class TakenPaths:
    """The paths that were given away, and their folders. They lie on disk, not in memory: there may be millions."""

    def __init__(self) -> None:
        self._names = sqlite3.connect("")  # an empty name: a temporary file that goes with the connection
        self._names.execute("CREATE TABLE names (key TEXT PRIMARY KEY, is_file INTEGER) WITHOUT ROWID")

    def take(self, *paths: str) -> bool:
        """Take all of them, or none: where one is the same as an earlier one, as its folder, or lies below it."""
        keys = [name_key(path) for path in paths]
        files, folders = set(keys), {folder for key in keys for folder in _folders(key)}
        if len(files) < len(keys) or files & folders or self._clashes(files, folders):
            return False
        rows = [*((key, 1) for key in files), *((key, 0) for key in folders)]
        self._names.executemany("INSERT OR IGNORE INTO names VALUES (?, ?)", rows)
        return True

    def close(self) -> None:
        """Forget them."""
        self._names.close()

    def _clashes(self, files: set[str], folders: set[str]) -> bool:
        marks = ",".join("?" * len(files | folders))
        found = self._names.execute(f"SELECT key, is_file FROM names WHERE key IN ({marks})", [*files, *folders])
        return any(is_file or key in files for key, is_file in found)


def _folders(path: str) -> Iterator[str]:
    while folder := path.rpartition("/")[0]:
        yield folder
        path = folder


def _shortened(name: str, text: str) -> str:
    if len(name.encode()) <= MAX_NAME_BYTES:
        return name
    stem, suffix = split_suffix(name)
    if len(suffix.encode()) > _LONGEST_SUFFIX:
        stem, suffix = name, ""
    end = f"_{_digest(text)}{suffix}"
    return stem.encode()[: MAX_NAME_BYTES - len(end.encode())].decode(errors="ignore") + end


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]
