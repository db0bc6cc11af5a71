"""Where the images of an output lie, and what they are called: the one place that relates both to a root."""

from __future__ import annotations

from pipeline.storage.uris import Uri, UriText, resolve


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
    """A relative path for an image, with ``/``, that climbs nowhere.

    Args:
        image_id: stands in for an image without a URI.
        uri: as its row has it.
        root: absolute, what annotate joined relative URIs to (``RunJson.image_root``). Below it the path is the
            relative one; elsewhere it is the whole URI without its scheme.
    """
    text = str(image_id) if uri is None else uri
    prefix = "" if root is None or uri is None else str(root).rstrip("/") + "/"
    if prefix and text.startswith(prefix):
        text = text[len(prefix) :]
    else:
        text = text.partition("://")[2] or text
    parts = [part for part in text.split("/") if part not in ("", ".", "..")]
    return "/".join(parts) or "image"
