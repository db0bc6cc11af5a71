"""Numbers in messages: how many there are of something, and how large it is."""

from __future__ import annotations

_UNITS = ("bytes", "kB", "MB", "GB", "TB", "PB")


def counted(n: int, noun: str, plural: str | None = None) -> str:
    """``1 image``, ``2,000 images``; ``plural`` where an "s" does not make it."""
    return f"{n:,} {noun if n == 1 else plural or f'{noun}s'}"


def size(num_bytes: int) -> str:
    """``1 byte``, ``512 bytes``, ``1.5 MB``; thousands, as disks have them."""
    if num_bytes < 1000:
        return counted(num_bytes, "byte")
    value, unit = float(num_bytes), 0
    while round(value, 1) >= 1000 and unit + 1 < len(_UNITS):
        value, unit = value / 1000, unit + 1
    return f"{value:.1f} {_UNITS[unit]}"
