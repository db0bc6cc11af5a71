"""Thresholds as the YAML file that ``model.class_thresholds_file`` of a config and the export job take."""

from __future__ import annotations

from collections.abc import Sequence

import yaml

from pipeline.messages.counts import counted
from pipeline.metrics.analysis.thresholds import ClassThreshold, Proportion
from pipeline.metrics.ap.records import HIT_IOU

# The highest score there is: a category that never reaches the precision keeps next to nothing.
NEVER = 1.0


def thresholds_yaml(names: Sequence[str], thresholds: Sequence[ClassThreshold], wanted_precision: float) -> str:
    """One line per category, ``"name": score``, with what was measured as a comment.

    Scores are written in full, so that exactly the detections that were counted pass ``score >= threshold``, in
    float32, in which models give their scores, as well as in float64.

    Args:
        names: [K] of the categories.
        thresholds: [K] in the same order.
        wanted_precision: that the thresholds are to reach, 0 to 1; stands in the heading.

    Raises:
        ValueError: two categories share a name or have none; a threshold is no score from 0 to 1.
    """
    double = sorted({name for name in names if names.count(name) > 1})
    if double:
        raise ValueError(f"thresholds go by name, and several categories are called {', '.join(map(repr, double))}")
    if "" in names:
        raise ValueError("thresholds go by name, and a category has none")
    lines = [
        f"# Lowest scores with a precision of {wanted_precision!r} at an IoU of {HIT_IOU}; in brackets: 95 % intervals",
        *(_line(name, threshold) for name, threshold in zip(names, thresholds, strict=True)),
    ]
    return "\n".join(lines) + "\n"


def _line(name: str, at: ClassThreshold) -> str:
    if at.threshold is None or at.precision is None:
        return f"{_key(name)}: {NEVER}  # never reaches the precision; {counted(at.objects, 'object')}"
    if not 0 <= at.threshold <= 1:
        raise ValueError(f"the threshold {at.threshold!r} of {name!r} is no score from 0 to 1: no config would take it")
    recall = f"recall {_share(at.recall)}, " if at.recall else ""
    comment = (
        f"precision {_share(at.precision)}, {recall}{counted(at.labels, 'label')}, {counted(at.objects, 'object')}"
    )
    return f"{_key(name)}: {yaml.safe_dump(at.threshold).splitlines()[0]}  # {comment}"


def _key(name: str) -> str:
    """In double quotes: without them ``1e6`` would be a number and ``no`` to some readers a boolean."""
    return yaml.safe_dump(name, default_style='"', allow_unicode=True, width=float("inf")).rstrip("\n")


def _share(at: Proportion) -> str:
    return f"{at.value:.3f} [{at.low:.3f}, {at.high:.3f}]"
