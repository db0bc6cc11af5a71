"""Pictures with objects drawn into them, small enough for a page that carries them in itself."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.drawing.draw import DrawOptions, Picture, draw, label_cover
from pipeline.masks.rle import Rle
from pipeline.model.categories import Category

# 80 classes of 6 images are 960 thumbnails: of this size at most, they fit into 15 MB as base64.
MOST_BYTES = 11_000
_FRAME = (320, 400)  # width and height that a thumbnail fits into
_MOST_ENLARGED = 2.0  # small pictures, so that their labels do not cover them
_QUALITIES = (75, 50, 25, 5)
_GREY = 160
_MOST_COVERED = 0.2  # labels on more of the picture hide what they name

_MASKS = DrawOptions(boxes=False, labels=False, scores=False)
_BOXES = DrawOptions(labels=False, scores=False, masks=False)
_BOXES_AND_LABELS = DrawOptions(masks=False)


@dataclass(frozen=True)
class Overlay:
    """Objects to be drawn into an image.

    Attributes:
        boxes: ``(N, 4)`` xyxy in pixels of the image.
        labels: ``(N,)`` position of the category in the page's categories.
        scores: ``(N,)``, or None for ground truth.
        rles: N masks, or None.
    """

    boxes: NDArray[np.floating]
    labels: NDArray[np.integer]
    scores: NDArray[np.floating] | None = None
    rles: Sequence[Rle] | None = None

    def misfits(self, height: int, width: int) -> int:
        """How many of the masks are not of an image of this size."""
        return sum(tuple(rle["size"]) != (height, width) for rle in self.rles or ())


@dataclass(frozen=True)
class Thumbnail:
    """``uri`` is a data URI; ``width`` and ``height`` are in pixels."""

    uri: str
    width: int
    height: int


def blank(height: int, width: int) -> Picture:
    """In the place of a picture that could not be read."""
    return np.full((height, width, 3), _GREY, np.uint8)


def thumbnail(pixels: Picture, overlay: Overlay, categories: Sequence[Category]) -> Thumbnail:
    """Masks are drawn at full size, boxes and text in the thumbnail, where they stay legible."""
    full = draw(pixels, *_arguments(overlay), categories, options=_MASKS) if overlay.rles else pixels
    small = _fitted(Image.fromarray(full))
    scale = np.array([small.width / pixels.shape[1], small.height / pixels.shape[0]] * 2)
    scaled = replace(overlay, boxes=overlay.boxes * scale)
    size = small.height, small.width
    cover = label_cover(size, overlay.labels, overlay.scores, categories, options=_BOXES_AND_LABELS)
    options = _BOXES_AND_LABELS if cover <= _MOST_COVERED else _BOXES
    drawn = draw(np.asarray(small), *_arguments(scaled), categories, options=options)
    return _encoded(Image.fromarray(drawn))


def _fitted(picture: Image.Image) -> Image.Image:
    scale = min(_FRAME[0] / picture.width, _FRAME[1] / picture.height, _MOST_ENLARGED)
    if scale == 1:
        return picture
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    return picture.resize(size, Image.Resampling.LANCZOS)


def _arguments(
    overlay: Overlay,
) -> tuple[NDArray[np.floating], NDArray[np.integer], NDArray[np.floating] | None, Sequence[Rle] | None]:
    return overlay.boxes, overlay.labels, overlay.scores, overlay.rles


def _encoded(picture: Image.Image) -> Thumbnail:
    """The best quality that keeps the limit; the lowest may exceed it, for noise alone does."""
    for quality in _QUALITIES:
        buffer = io.BytesIO()
        picture.save(buffer, "WEBP", quality=quality)
        if buffer.tell() <= MOST_BYTES:
            break
    uri = "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
    return Thumbnail(uri, picture.width, picture.height)
