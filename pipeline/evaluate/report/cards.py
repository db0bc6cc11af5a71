"""Best and worst images of each class: ground truth and detections side by side, small enough for one page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from pipeline.model.categories import Category
from pipeline.page.thumbnails import Overlay, Thumbnail, blank, thumbnail
from pipeline.tables.arrays import Uint8s


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
        pixels = blank(height, width)
        notes.append(f"The picture could not be read: {image.reason or 'no reason was given'}.")
    overlays = []
    for name, overlay in (("annotated", image.truth), ("detected", image.detections)):
        misfits = overlay.misfits(height, width)
        if misfits:
            notes.append(f"{misfits} {name} masks are of another size than the picture and are not drawn.")
        overlays.append(replace(overlay, rles=None) if misfits else overlay)
    truth, detections = (thumbnail(pixels, overlay, categories) for overlay in overlays)
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
