"""Names of images as files, for formats that know images by their paths."""

from __future__ import annotations

import hashlib
import sqlite3

from pipeline.storage.uris import split_uri


def image_path(image_id: int | str, uri: str | None, root: str | None) -> str:
    """A relative path for an image, with ``/``, that climbs nowhere.

    Args:
        image_id: stands in for an image without a URI.
        uri: where the image came from.
        root: what the manifest's URIs were relative to. Below it the path is the relative one; elsewhere it is the
            whole URI without its scheme.
    """
    text = str(image_id) if uri is None else uri
    prefix = _prefix(root) if root and uri is not None else ""
    if prefix and text.startswith(prefix):
        text = text[len(prefix) :]
    else:
        text = text.partition("://")[2] or text
    parts = [part for part in text.split("/") if part not in ("", ".", "..")]
    return "/".join(parts) or "image"


def _prefix(root: str) -> str:
    """What the URIs below a root start with; the manifest reader has joined them so."""
    location = split_uri(root)
    return (location.path if location.scheme == "file" else root).rstrip("/") + "/"


class UniqueNames:
    """Makes each name different from all before it; which names there were lies on disk, not in memory."""

    def __init__(self) -> None:
        self._names = sqlite3.connect("")  # an empty name: a temporary file that goes with the connection
        self._names.execute("CREATE TABLE names (name TEXT PRIMARY KEY) WITHOUT ROWID")

    def take(self, name: str, key: int | str) -> str:
        """The name itself, or with a suffix made from the key where it is taken.

        Args:
            name: wanted.
            key: different for every call.
        """
        suffix = hashlib.sha256(str(key).encode()).hexdigest()[:16]
        return name if self._add(name) else self.take(f"{name}_{suffix}", key)

    def _add(self, name: str) -> bool:
        return self._names.execute("INSERT OR IGNORE INTO names VALUES (?)", (name,)).rowcount == 1

    def close(self) -> None:
        """Remove the file."""
        self._names.close()
