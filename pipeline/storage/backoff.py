"""How long to wait before a request is made again."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Backoff:
    """Waits that grow and are drawn at random ("full jitter"), so that many clients do not come back at once.

    Attributes:
        base_s: the longest wait after the first attempt, doubled after each further one.
        cap_s: the longest wait of all.
    """

    base_s: float = 0.2
    cap_s: float = 10.0

    def __post_init__(self) -> None:
        if not 0 <= self.base_s <= self.cap_s:
            raise ValueError("base_s must be at least 0 and at most cap_s")

    def draw_s(self, attempt: int) -> float:
        """The wait after an attempt, counted from 1, in seconds."""
        return random.uniform(0, min(self.cap_s, self.base_s * 2 ** (attempt - 1)))
