"""Which detections become labels: those with a score of at least their class's threshold."""

from __future__ import annotations

from pathlib import Path

from pipeline.annotations.class_thresholds import Selection, read_class_thresholds
from pipeline.export.errors import ExportError


def read_selection(thresholds_file: str | Path | None, min_score: float) -> Selection:
    """A selection as the command line gives it.

    Args:
        thresholds_file: YAML ``{name: score}``, as the annotate config's ``class_thresholds_file``.
        min_score: of the other classes, 0 to 1.

    Raises:
        ConfigError: the file cannot be read, or holds something else.
        ExportError: ``min_score`` is no score.
    """
    if not 0 <= min_score <= 1:
        raise ExportError(f"a minimum score must be from 0 to 1, not {min_score}")
    if thresholds_file is None:
        return Selection(min_score)
    return Selection(min_score, read_class_thresholds(thresholds_file))
