"""``psi>0.2``: when a comparison is not good enough."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.errors import UserError
from pipeline.messages.counts import counted
from pipeline.messages.examples import Examples

# What may be limited, and what it is; `pipeline.compare.run.Comparison.figures` has the numbers.
FIGURES = {
    "psi": "largest population stability index of a class' scores or areas, of objects an image, or of picture sizes",
    "js": "largest Jensen-Shannon distance of these, 0 to 1",
    "share_change": "largest change of a class' share of images, 0 to 1",
    "count_change": "relative change of a class' objects an image: -1 where it is gone, 1 where there are twice "
    "as many; < is for the class that lost most, > for the one that gained most",
    "failed_change": "change of the share of failed images, -1 to 1: above 0 where more fail",
    "agreement": "of all objects on images of both sides, the share that is the same, 0 to 1",
}
# Classes with fewer objects are left out of a figure, which would be chance: histograms have 20 bins. Of a distance the
# smaller side counts; of a change the side with more objects, on as many images as the smaller side has.
MIN_OBJECTS = {"psi": 100, "js": 100, "count_change": 30}
_COUNTED = {"count_change": " on as many images as the smaller side has"}
# And with fewer images on a side, what is counted by images: a night of three would break any limit by chance.
MIN_IMAGES = 100
BY_IMAGES = {
    "psi": "psi of objects an image and of picture sizes",
    "js": "js of objects an image and of picture sizes",
    "share_change": "share_change",
}
_NOTHING = {
    "agreement": "there is no object on images of both sides",
    "failed_change": "a side has no image",
    "count_change": "no class has enough objects",
}
_OPERATORS = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}
_LIMIT = re.compile(r"\s*([a-z_]+)\s*(>=|<=|>|<)\s*([-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?)\s*")


Figure = float | list[float] | None  # the lowest and the highest, where a limit may be on either


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

    def is_broken(self, figures: Mapping[str, Figure]) -> bool:
        """Whether the comparison fails by this; what cannot be told breaks no limit, see `not_judged`."""
        found = figures[self.figure]
        values = found if isinstance(found, list) else [] if found is None else [found]
        return any(_OPERATORS[self.operator](value, self.value) for value in values)


def not_judged(
    limits: Sequence[Limit], figures: Mapping[str, Figure], left_out: Mapping[str, Sequence[str]], few_images: bool
) -> str:
    """What there are limits on and could not be told, in words; "" if all could.

    Args:
        limits: that were asked for.
        figures: of the comparison.
        left_out: classes with too few objects, by the figure.
        few_images: whether a side has fewer than `MIN_IMAGES`.
    """
    told, by_images = [], []
    for name in dict.fromkeys(limit.figure for limit in limits):
        if few_images and name in BY_IMAGES:
            by_images.append(BY_IMAGES[name])
        if classes := left_out.get(name):
            of = counted(len(classes), "class", "classes")
            few = f"fewer than {MIN_OBJECTS[name]} objects{_COUNTED.get(name, '')}"
            told.append(f"{name} of {of} with {few} ({Examples.of(classes)})")
        elif figures[name] is None and not (few_images and name in BY_IMAGES):
            told.append(f"{name}: {_NOTHING.get(name, 'there is no object on either side')}")
    if by_images:
        told.append(f"{', '.join(by_images)}: a side has fewer than {MIN_IMAGES} annotated images")
    return f"not judged: {'; '.join(told)}" if told else ""
