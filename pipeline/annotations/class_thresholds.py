"""The score from which a detection counts, by class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipeline.config.base import Score, Text, did_you_mean
from pipeline.config.loading import read_values
from pipeline.model.categories import Category
from pipeline.storage.uris import UriText

_MAX_NAMES = 20


def read_class_thresholds(path: UriText) -> dict[str, float]:
    """Read a file of scores by category name, as ``model.class_thresholds_file`` and the export take it.

    Raises:
        ConfigError: the file cannot be read, or holds something else.
    """
    return read_values(path, dict[Text, Score], "name: score")


@dataclass(frozen=True)
class Selection:
    """The scores that a label needs.

    Attributes:
        min_score: of the classes without a threshold of their own.
        class_thresholds: least score of a class, by its name; goes before ``min_score``.
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
        """Names with a threshold but without a category, each with what may have been meant; of many some."""
        names = [category.name for category in categories]
        unknown = [name for name in self.class_thresholds if name not in names]
        shown = [f"{name!r}{did_you_mean(name, names)}" for name in unknown[:_MAX_NAMES]]
        return shown + ([f"{len(unknown) - len(shown):,} more"] if len(unknown) > len(shown) else [])
