"""Labelled images -> samples."""

from __future__ import annotations

from pipeline.annotations.failure import ImageFailure
from pipeline.annotations.pictures import PictureSource
from pipeline.train.data.labelled import LabelledImage
from pipeline.train.sample.sample import Sample


def load_sample(image: LabelledImage, pictures: PictureSource) -> Sample | ImageFailure:
    """Fetch and decode the picture of an image; why there is none, as a value.

    Raises:
        DataError: the picture has another size than the annotations.
    """
    (picture,) = pictures.read_many([image.uri])
    return picture if isinstance(picture, ImageFailure) else image.sample(picture)
