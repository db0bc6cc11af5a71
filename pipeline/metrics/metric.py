"""What a metric beyond AP is. There are two kinds, by what it has to look at:

* `Metric`: at images. It is updated with blocks of them on any machine, and what the machines have is merged.
* `CategoryMetric`: at all detections of a category from the best score down. They are sorted first, and one machine
  sees them all; such metrics need no merging.

What either comes to is `Figures`: its section of metrics.json. The list of all is in ``pipeline.evaluate.analysis``.

Legend: K categories in the order of their ids; D detections, G objects of a block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from pipeline.metrics.analysis.outcomes import Judgement, judge
from pipeline.metrics.ap.records import Records
from pipeline.metrics.blocks import DetectionBlock, TruthBlock
from pipeline.metrics.overlaps import Overlaps
from pipeline.tables.arrays import Float64s

if TYPE_CHECKING:
    from typing_extensions import Self  # of typing from Python 3.11 on

CategoryResult_co = TypeVar("CategoryResult_co", covariant=True)


@dataclass(frozen=True)
class ComparedBlock:
    """A block of N images, and what several metrics ask about it, worked out once.

    Attributes:
        truth: the ground truth of the images.
        detections: on the same images.
        overlaps: every detection and object of one image that overlap, of different categories too.
        num_categories: K, of the ground truth.
    """

    truth: TruthBlock
    detections: DetectionBlock
    overlaps: Overlaps
    num_categories: int

    @cached_property
    def judgement(self) -> Judgement:
        """What became of every detection and object: right, or which error."""
        return judge(self.truth, self.detections, self.overlaps)


class Figures(Protocol):
    """What a metric comes to."""

    def to_json(self, names: Sequence[str]) -> dict[str, Any]:
        """The metric's section of metrics.json: plain JSON, null for what is undefined.

        Args:
            names: [K] of the categories.
        """


class Metric(Protocol):
    """Adds up over blocks of images, in any order. It is sent between machines, so it keeps sums and no images."""

    def update(self, block: ComparedBlock) -> None:
        """Take in a block; every image is in one block."""

    def merge(self, other: Self) -> None:
        """Take in what another, made with the same settings, has of other images; ``other`` stays as it is."""

    def result(self) -> Figures:
        """Of all that was taken in."""


class CategoryMetric(Protocol[CategoryResult_co]):
    """Goes along the detections of one category in constant memory."""

    def update(self, records: Records) -> None:
        """Take in the next records, in the order of ``ap.records.sort_order``; where they are cut changes nothing."""

    def result(self) -> CategoryResult_co:
        """Of all that was taken in; small, for it is sent home for each category."""


def nan_to_null(values: Float64s) -> list[float | None]:
    """As JSON has it, which knows no NaN."""
    return [None if np.isnan(value) else value for value in values.tolist()]
