"""``psi>0.2``: when a comparison is not good enough."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.errors import UserError

# What may be limited, and what it is; `pipeline.compare.run.Comparison.figures` has the numbers.
FIGURES = {
    "psi": "largest population stability index of a class' scores or areas, of objects an image, or of picture sizes",
    "js": "largest Jensen-Shannon distance of these, 0 to 1",
    "share_change": "largest change of a class' share of images, 0 to 1",
    "failed_change": "change of the share of failed images, -1 to 1: above 0 where more fail",
    "agreement": "of all objects on images of both sides, the share that is the same, 0 to 1",
}
_LIMIT = re.compile(r"\s*([a-z_]+)\s*(>=|<=|>|<)\s*([-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?)\s*")


class LimitError(UserError):
    """No limit can be read from the text; the message says what may be limited."""


@dataclass(frozen=True)
class Limit:
    """A comparison fails where ``figure`` is beyond ``value``."""

    text: str
    figure: str
    operator: str
    value: float

    @classmethod
    def parse(cls, text: str) -> Limit:
        """Read ``NAME OP NUMBER``.

        Raises:
            LimitError: it is none.
        """
        found = _LIMIT.fullmatch(text)
        if found is None or found[1] not in FIGURES:
            names = "; ".join(f"{name}: {about}" for name, about in FIGURES.items())
            raise LimitError(f"{text!r} is no limit like 'psi>0.2'. What may be limited: {names}")
        try:
            return cls(text.strip(), found[1], found[2], float(found[3]))
        except ValueError:
            raise LimitError(f"{text!r}: {found[3]} is no number") from None

    def is_broken(self, figures: Mapping[str, float | None]) -> bool:
        """Whether the comparison fails by this; what cannot be told breaks no limit."""
        found = figures[self.figure]
        if found is None:
            return False
        return {
            ">": found > self.value,
            ">=": found >= self.value,
            "<": found < self.value,
            "<=": found <= self.value,
        }[self.operator]
