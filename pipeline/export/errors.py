"""What an export refuses."""

from __future__ import annotations

from pipeline.errors import UserError


class ExportError(UserError):
    """An export that cannot be made as it was asked for; the message says what to do."""
