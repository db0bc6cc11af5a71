"""What the XML files of the annotation tools have in common."""

from __future__ import annotations

import re

from pipeline.drawing.colours import category_colour

# XML 1.0 has no place for most control characters, escaped or not.
_ILLEGAL = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def printable(text: str) -> str:
    """The text with U+FFFD in the place of each character that XML does not have."""
    return _ILLEGAL.sub("\ufffd", text)


def css_colour(category_id: int) -> str:
    """The colour that a category has everywhere in this project, as ``#rrggbb``."""
    return "#" + bytes(category_colour(category_id)).hex()
