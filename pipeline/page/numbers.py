"""Numbers, times and names as pages write them. What is undefined is a dash, and COCO writes -1 for it."""

from __future__ import annotations

import math
from datetime import datetime, timezone
from typing import Any

DASH = "\N{EN DASH}"

Number = float | int | None


def is_defined(value: Number) -> bool:
    """Whether there is a number at all: not None, not NaN."""
    return value is not None and not math.isnan(value)


def defined_ratio(value: Number) -> float | None:
    """A quantity of 0 to 1, of which COCO says -1 where there is nothing to measure it on."""
    return float(value) if value is not None and is_defined(value) and value >= 0 else None


def ratio(value: Number) -> str:
    """Three digits: ``0.437``."""
    number = defined_ratio(value)
    return DASH if number is None else f"{number:.3f}"


def signed(value: Number) -> str:
    """A difference, of which a negative one is a number too: ``+0.012``."""
    return f"{value:+.3f}" if value is not None and is_defined(value) else DASH


def count(value: Number) -> str:
    """``12,345``."""
    return f"{int(value):,}" if value is not None and is_defined(value) else DASH


def percent(value: Number) -> str:
    """Of a share: ``4.2 %``, and a small one is not nothing: ``< 0.1 %``."""
    if value is None or not is_defined(value):
        return DASH
    return "< 0.1 %" if 0 < value < 0.001 else f"{100 * value:.1f} %"


def css_percent(value: Number) -> str:
    """A share as a length in CSS, 0 to 100 %."""
    number = value if value is not None and is_defined(value) else 0.0
    return f"{100 * min(max(number, 0.0), 1.0):.4g}%"


def moment(value: datetime) -> str:
    """``2026-01-31 09:05 UTC``."""
    return f"{value.astimezone(timezone.utc):%Y-%m-%d %H:%M} UTC"


def title_of(name: str) -> str:
    """Of a section: ``object_sizes`` is "Object sizes"."""
    return name.replace("_", " ").capitalize()


FILTERS: dict[str, Any] = {
    "ratio": ratio,
    "signed": signed,
    "count": count,
    "percent": percent,
    "css_percent": css_percent,
    "moment": moment,
    "title_of": title_of,
}
