"""What an export refuses."""

from __future__ import annotations


class ExportError(ValueError):
    """An export that cannot be made as it was asked for; the message says what to do."""
