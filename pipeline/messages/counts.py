"""Counts with their nouns: ``1 image``, ``2,000 images``."""

from __future__ import annotations


def counted(n: int, noun: str, plural: str | None = None) -> str:
    """A count and its noun in the number that it needs; the plural is the noun with an s, unless it is given."""
    return f"{n:,} {noun if n == 1 else plural or noun + 's'}"
