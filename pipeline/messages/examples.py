"""The first few cases of something, for a message."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

NUM_EXAMPLES = 5


@dataclass(frozen=True)
class Examples:
    """How often something occurs, and the first few cases of it: ``7, 8 and 2,000 more``. Those of parts add up.

    Attributes:
        count: how many cases there are.
        first: texts of the first ones, at most `NUM_EXAMPLES`.
    """

    count: int = 0
    first: tuple[str, ...] = ()

    @classmethod
    def of(cls, cases: Iterable[object], count: int | None = None) -> Examples:
        """Of cases; ``count`` where only the first of them are given."""
        texts = tuple(str(case) for case in cases)
        return cls(len(texts) if count is None else count, texts[:NUM_EXAMPLES])

    def __add__(self, other: Examples) -> Examples:
        return Examples(self.count + other.count, (self.first + other.first)[:NUM_EXAMPLES])

    def __str__(self) -> str:
        more = self.count - len(self.first)
        return ", ".join(self.first) + (f" and {more:,} more" if more else "")
