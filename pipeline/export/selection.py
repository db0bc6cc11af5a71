"""Which detections become labels: those with a score of at least their class's threshold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.config.base import did_you_mean
from pipeline.config.loading import read_class_thresholds
from pipeline.export.errors import ExportError
from pipeline.model.categories import Category


@dataclass(frozen=True)
class Selection:
    """The scores that a label needs.

    Attributes:
        min_score: of the classes without a threshold of their own.
        class_thresholds: by class name.
    """

    min_score: float = 0.0
    class_thresholds: Mapping[str, float] = field(default_factory=dict)

    def thresholds(self, categories: Sequence[Category]) -> NDArray[np.float32]:
        """For each category the lowest score that is kept.

        As float32, and to be compared with float32 scores: the annotate job does the same, so that both keep the
        same detections at the same thresholds.
        """
        scores = [self.class_thresholds.get(category.name, self.min_score) for category in categories]
        return np.array(scores, np.float32)

    def unknown_names(self, categories: Sequence[Category]) -> list[str]:
        """Names with a threshold but without a category, each with what may have been meant."""
        names = [category.name for category in categories]
        return [f"{name!r}{did_you_mean(name, names)}" for name in self.class_thresholds if name not in names]


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
