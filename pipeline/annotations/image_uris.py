"""Where the images of an output lie, and what they are called: the one place that relates both to a root."""

from __future__ import annotations

from urllib.parse import quote

from pipeline.storage.uris import Uri, UriError, UriText, resolve


def picture_uri(uri: UriText, root: Uri | None = None) -> UriText:
    """Where to read an image of an output.

    Args:
        uri: as its row has it: absolute, since annotate joins relative ones to the manifest's root. Only an image that
            came as bytes may have a relative one: a label, which that root could not be put before.
        root: given by hand, for those; without it they are relative to the current directory.

    Raises:
        UriError: it cannot be joined to the root.
    """
    return uri if root is None else resolve(uri.secret_text, root)


def image_path(image_id: int | str, uri: str | None, root: Uri | None) -> str:
    """What an image is called where people and tools know it by its file: what `resolve` with the root takes back.

    So no two URIs have one name, and whoever joins it with the root reads the same image. Below the root it is the
    path or the literal key; where that would mean something else (it lies elsewhere, its key begins with ``/``, ``./``,
    ``../`` or looks like a URI) it is the whole URI.

    Args:
        image_id: stands in for an image without a URI.
        uri: as its row has it.
        root: absolute, what annotate joined relative URIs to (``RunJson.image_root``).
    """
    if uri is None or not (uri.startswith("/") or "://" in uri):
        return _label(str(image_id) if uri is None else uri)
    place = _literal(uri)
    prefix = "" if root is None else _literal(str(root)).rstrip("/") + "/"
    below = place[len(prefix) :] if prefix and place.startswith(prefix) else ""
    try:
        is_text = below.encode(errors="replace").decode() == below  # a local name need not be
        is_same = is_text and _literal(resolve(below, root).secret_text) == place
    except UriError:
        is_same = False
    return below if is_same else uri


def _literal(uri: str) -> str:
    """The path of a file URI, or else the same text."""
    return Uri(uri).path if uri[:5].lower() == "file:" else uri


def _label(text: str) -> str:
    """A name that nobody reads from, which climbs nowhere all the same."""
    return quote(text, safe="").replace(".", "%2E") if {"", ".", ".."} & {*text.split("/")} else text
