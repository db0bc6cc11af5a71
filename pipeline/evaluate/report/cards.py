"""Best and worst images of each class: ground truth and detections side by side, small enough for one page."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.drawing.draw import DrawOptions, Picture, draw
from pipeline.masks.rle import Rle
from pipeline.model.categories import Category
from pipeline.tables.arrays import Uint8s

# 80 classes of 6 images are 960 thumbnails: of this size at most, they fit into 15 MB as base64.
MOST_BYTES = 11_000
_FRAME = (320, 400)  # width and height that a thumbnail fits into
_QUALITIES = (75, 50, 25, 5)
_GREY = 160
_MOST_LABELLED = 12  # more labels hide what they name

_MASKS = DrawOptions(boxes=False, labels=False, scores=False)
_BOXES = DrawOptions(labels=False, scores=False, masks=False)
_BOXES_AND_LABELS = DrawOptions(masks=False)


@dataclass(frozen=True)
class Overlay:
    """Objects to be drawn into an image.

    Attributes:
        boxes: ``(N, 4)`` xyxy in pixels of the image.
        labels: ``(N,)`` position of the category in the report's ``categories``.
        scores: ``(N,)``, or None for ground truth.
        rles: N masks, or None.
    """

    boxes: NDArray[np.floating]
    labels: NDArray[np.integer]
    scores: NDArray[np.floating] | None = None
    rles: Sequence[Rle] | None = None


@dataclass(frozen=True)
class GalleryImage:
    """One image as an example for a class.

    Attributes:
        category_name: name of the class.
        kind: what it is an example of.
        quality: by which it was chosen, 0 to 1.
        pixels: RGB uint8 ``(H, W, 3)``; None if it could not be read, and ``reason`` says why.
        truth: all annotated objects, of any class.
        detections: those of any class, from a score on.
        true_positives: detections of the class that match an object.
        false_positives: those that match none.
        missed: objects of the class that no detection matches.
        reason: why there are no pixels.
    """

    category_name: str
    kind: Literal["worst", "best"]
    image_id: int | str
    quality: float
    pixels: Uint8s | None
    truth: Overlay
    detections: Overlay
    true_positives: int
    false_positives: int
    missed: int
    reason: str = ""


@dataclass(frozen=True)
class Thumbnail:
    """``uri`` is a data URI; ``width`` and ``height`` are in pixels."""

    uri: str
    width: int
    height: int


@dataclass(frozen=True)
class Card:
    """A gallery image as the page shows it.

    Attributes:
        image: what is shown; its pixels are left out.
        truth: the annotated objects in the picture.
        detections: the detections in it.
        notes: what the pictures do not show, and why.
    """

    image: GalleryImage
    truth: Thumbnail
    detections: Thumbnail
    notes: tuple[str, ...]


def gallery_cards(images: Iterable[GalleryImage], categories: Sequence[Category]) -> dict[str, dict[str, list[Card]]]:
    """Cards by class, in the order in which the classes come, and by kind.

    The images are drawn one at a time, so a generator need not have all of their pixels in memory.
    """
    cards: dict[str, dict[str, list[Card]]] = {}
    for image in images:
        cards.setdefault(image.category_name, {}).setdefault(image.kind, []).append(_card(image, categories))
    return cards


def _card(image: GalleryImage, categories: Sequence[Category]) -> Card:
    height, width = _image_size(image)
    pixels = image.pixels
    notes = []
    if pixels is None:
        pixels = np.full((height, width, 3), _GREY, np.uint8)
        notes.append(f"The picture could not be read: {image.reason or 'no reason was given'}.")
    overlays = []
    for name, overlay in (("annotated", image.truth), ("detected", image.detections)):
        misfits = _misfits(overlay, height, width)
        if misfits:
            notes.append(f"{misfits} {name} masks are of another size than the picture and are not drawn.")
        overlays.append(replace(overlay, rles=None) if misfits else overlay)
    truth, detections = (_thumbnail(pixels, overlay, categories) for overlay in overlays)
    return Card(replace(image, pixels=None), truth, detections, tuple(notes))


def _image_size(image: GalleryImage) -> tuple[int, int]:
    """Of the picture, or what its masks or boxes say of it if there is none."""
    if image.pixels is not None:
        return image.pixels.shape[0], image.pixels.shape[1]
    for overlay in (image.truth, image.detections):
        if overlay.rles:
            return overlay.rles[0]["size"][0], overlay.rles[0]["size"][1]
    corners = np.concatenate([image.truth.boxes, image.detections.boxes])[:, 2:].max(axis=0, initial=1.0)
    return int(np.ceil(corners[1])), int(np.ceil(corners[0]))


def _misfits(overlay: Overlay, height: int, width: int) -> int:
    return sum(tuple(rle["size"]) != (height, width) for rle in overlay.rles or ())


def _thumbnail(pixels: Picture, overlay: Overlay, categories: Sequence[Category]) -> Thumbnail:
    """Masks are drawn at full size, boxes and text in the small picture, where they stay legible."""
    full = draw(pixels, *_arguments(overlay), categories, options=_MASKS) if overlay.rles else pixels
    small = Image.fromarray(full)
    small.thumbnail(_FRAME, Image.Resampling.LANCZOS)
    scale = np.array([small.width / pixels.shape[1], small.height / pixels.shape[0]] * 2)
    scaled = replace(overlay, boxes=overlay.boxes * scale)
    options = _BOXES_AND_LABELS if len(overlay.boxes) <= _MOST_LABELLED else _BOXES
    drawn = draw(np.asarray(small), *_arguments(scaled), categories, options=options)
    return _encoded(Image.fromarray(drawn))


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
