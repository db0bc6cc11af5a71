"""What is wrong with a COCO file."""

from __future__ import annotations

from pipeline.errors import UserError


class InputError(UserError):
    """Ground truth or predictions that cannot be evaluated. The message says where, why, what to do; no secrets."""
