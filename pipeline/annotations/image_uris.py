"""Where the images of an output lie, and what they are called: the one place that relates both to a root."""

from __future__ import annotations

from pipeline.storage.uris import join


def picture_uri(uri: str, root: str = "") -> str:
    """Where to read an image of an output.

    Args:
        uri: as its row has it: absolute, since annotate joins relative ones to the manifest's root. Only an image that
            came as bytes may have a relative one: a label, which that root could not be put before.
        root: given by hand, for those; without it they are relative to the current directory.

    Raises:
        UriError: it cannot be joined to the root.
    """
    return join(root, uri) if root else uri


def image_path(image_id: int | str, uri: str | None, root: str | None) -> str:
    """A relative path for an image, with ``/``, that climbs nowhere.

    Args:
        image_id: stands in for an image without a URI.
        uri: as its row has it.
        root: absolute, what annotate joined relative URIs to (``RunJson.image_root``). Below it the path is the
            relative one; elsewhere it is the whole URI without its scheme.
    """
    text = str(image_id) if uri is None else uri
    prefix = root.rstrip("/") + "/" if root and uri is not None else ""
    if prefix and text.startswith(prefix):
        text = text[len(prefix) :]
    else:
        text = text.partition("://")[2] or text
    parts = [part for part in text.split("/") if part not in ("", ".", "..")]
    return "/".join(parts) or "image"
