"""Labelled images -> samples: one by one, or as rows of ``ray.data``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.pictures import PictureSource
from pipeline.stages.rows import RowError
from pipeline.training.labelled import LabelledImage
from pipeline.training.samples import Sample


def load_sample(image: LabelledImage, pictures: PictureSource) -> Sample | RowError:
    """Fetch and decode the picture of an image; why there is none, as a value.

    Raises:
        DataError: the picture has another size than the annotations.
    """
    (picture,) = pictures.read_many([image.uri])
    return picture if isinstance(picture, RowError) else image.sample(picture)


@dataclass(frozen=True)
class PictureRows:
    """For ``ray.data``'s ``map``: rows of ``labelled.labelled_table`` get their pictures. Picklable.

    Masks stay run lengths on the way, which `row_sample` decodes in the process that trains.
    """

    pictures: PictureSource

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The row with ``pixels`` ``(H, W, 3)``, ``error`` ""; or with no pixels, and why, in ``error``."""
        (picture,) = self.pictures.read_many([row["image_uri"]])
        if isinstance(picture, RowError):
            return {**row, "pixels": np.zeros((0, 0, 3), np.uint8), "error": picture.message}
        return {**row, "pixels": picture, "error": ""}


def row_sample(row: Mapping[str, Any]) -> Sample | RowError:
    """The sample of a row that `PictureRows` made.

    Raises:
        DataError: the picture has another size than the annotations.
    """
    if row["error"]:
        return RowError("fetch", "unreadable", row["error"])
    return LabelledImage.of_row(row).sample(row["pixels"])
